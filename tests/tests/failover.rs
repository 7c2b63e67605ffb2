//! Roots and APIs that die, fall silent and come back, as real processes: their clients see a pause.

use std::collections::BTreeSet;

use banyan_tests::{
    Banyan, eventually,
    forest::free_port,
    http::{Event, Http, joined},
    process::banyan,
};
use hyper::StatusCode;
use serde_json::{Value, json};

/// A registry, a root and its standby, two nodes and two APIs.
struct Grove {
    _registry: Banyan,
    root: Banyan,
    spare: Banyan,
    nodes: Vec<Banyan>,
    apis: Vec<Banyan>,
    etcd: String,
}

impl Grove {
    async fn start() -> Grove {
        let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
        let etcd = registry.fact("etcd").await;
        let run = |what: &str| Banyan::start(&format!("{what} --listen 127.0.0.1:0 --etcd {etcd}"));
        let root = run("node run root --standby");
        root.printed("is ready").await;
        status(&etcd, "root", "root reigns", |root| root["state"] == "ready").await;
        let spare = run("node run spare --standby");
        spare.printed("is ready").await;
        let node = |name| run(&format!("node run {name} --parent root --engine fake --token-time 20ms"));
        let nodes = vec![node("a"), node("b")];
        for node in &nodes {
            node.printed("is ready").await;
        }
        let apis = vec![run("api run"), run("api run")];
        let grove = Grove { _registry: registry, root, spare, nodes, apis, etcd };
        for number in 0..2 {
            let api = grove.api(number).await;
            eventually("the API is ready", || async { api.get("/readyz").await.status.is_success().then_some(()) }).await;
        }
        grove
    }

    async fn api(&self, number: usize) -> Http {
        self.apis[number].api().await
    }

    async fn why(&self, id: &str) -> Value {
        banyan(&format!("why {id} -o json --etcd {}", self.etcd)).await.json()
    }
}

/// A node's status, once it is as wanted.
async fn status(etcd: &str, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || async {
        let seen = banyan(&format!("node log {name} --last 1 -o json --etcd {etcd}")).await;
        let status: Value = serde_json::from_str(&seen.out).ok()?;
        wanted(&status).then_some(status)
    })
    .await
}

/// Tells how long a client waited at most from one event to the next: a figure for docs/reliability.md, which no test judges.
fn tell_pause(what: &str, first: &Event, rest: &[Event]) {
    let times: Vec<_> = std::iter::once(first).chain(rest).map(|event| event.at).collect();
    let longest = times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
    println!("{what}: the longest pause was {:.2} s", longest.as_secs_f64());
}

fn story(tokens: u32) -> Value {
    json!({ "model": "fake", "prompt": "once", "seed": 5, "max_tokens": tokens, "ignore_eos": true, "stream": true })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_a_pause_when_the_root_is_killed() {
    let grove = Grove::start().await;
    let api = grove.api(0).await;
    let undisturbed = joined(&api.stream("/v1/completions", &story(150)).await.rest().await);
    let mut stream = api.stream("/v1/completions", &story(150)).await;
    let first = stream.next_text().await;
    grove.root.signal("KILL").await;
    // Asked while there is no root.
    let meanwhile =
        tokio::spawn(async move { api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await });
    let events = stream.rest().await;
    tell_pause("root killed", &first, &events);
    assert_eq!(first.text() + &joined(&events), undisturbed);
    assert!(events.iter().all(|event| !event.data.contains("\"error\"")), "{events:?}");
    assert_eq!(events.last().map(|event| event.data.as_str()), Some("[DONE]"));
    assert_eq!(meanwhile.await.expect("no panic").text(), "1 2 3");
    let why = grove.why(first.json()["id"].as_str().expect("an id")).await;
    assert_eq!(
        (why["attempts"].as_array().map(Vec::len), &why["tokens"]),
        (Some(1), &json!(150)),
        "its node went on with it: {why}"
    );
    // Below a root that is no more is below the one that took its place.
    let late = Banyan::start(&format!("node run c --parent root --engine fake --listen 127.0.0.1:0 --etcd {}", grove.etcd));
    late.printed("node c is ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_told_to_end_hands_over_to_its_standby() {
    let grove = Grove::start().await;
    let api = grove.api(0).await;
    let undisturbed = joined(&api.stream("/v1/completions", &story(150)).await.rest().await);
    let mut stream = api.stream("/v1/completions", &story(150)).await;
    let first = stream.next_text().await;
    grove.root.signal("TERM").await;
    let events = stream.rest().await;
    tell_pause("root told to end", &first, &events);
    assert_eq!(first.text() + &joined(&events), undisturbed);
    let left = grove.root.finished().await;
    assert!(left.code == 0 && left.err.contains("hands its reign over"), "{}", left.err);
    status(&grove.etcd, "spare", "the standby reigns", |spare| spare["state"] == "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_stopped_finds_itself_deposed_and_waits_for_its_turn() {
    let grove = Grove::start().await;
    let api = grove.api(0).await;
    let undisturbed = joined(&api.stream("/v1/completions", &story(400)).await.rest().await);
    let mut stream = api.stream("/v1/completions", &story(400)).await;
    let first = stream.next_text().await;
    grove.root.signal("STOP").await;
    status(&grove.etcd, "spare", "the standby reigns", |spare| spare["state"] == "ready").await;
    grove.root.signal("CONT").await;
    status(&grove.etcd, "root", "the former root waits", |root| root["state"] == "standby").await;
    let events = stream.rest().await;
    tell_pause("root stopped", &first, &events);
    assert_eq!(first.text() + &joined(&events), undisturbed);
    assert_eq!(api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await.text(), "1 2 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_wakes_while_its_successor_leaves_reigns_again() {
    let grove = Grove::start().await;
    let api = grove.api(0).await;
    grove.root.signal("STOP").await;
    status(&grove.etcd, "spare", "the standby reigns", |spare| spare["state"] == "ready").await;
    // It learns of its successor, whose place is free again by the time that it asks for its own.
    grove.root.signal("CONT").await;
    grove.spare.signal("TERM").await;
    status(&grove.etcd, "root", "the former root reigns again", |root| root["state"] == "ready").await;
    assert_eq!(api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await.text(), "1 2 3");
    assert_eq!(grove.spare.finished().await.code, 0);
}

/// A root that nobody stands by for.
struct Alone {
    root: Banyan,
    /// Starts it again, where it was.
    line: String,
    api: Http,
    _others: [Banyan; 3],
}

async fn alone() -> Alone {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let line = format!("node run root --listen 127.0.0.1:{} --etcd {etcd}", free_port());
    let root = Banyan::start(&line);
    root.printed("node root is ready at ").await;
    let node =
        Banyan::start(&format!("node run a --parent root --engine fake --token-time 20ms --listen 127.0.0.1:0 --etcd {etcd}"));
    node.printed("is ready").await;
    let process = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let api = api_when_ready(&process).await;
    Alone { root, line, api, _others: [registry, node, process] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_without_a_standby_goes_on_where_it_was_when_it_is_started_again() {
    let Alone { root, line, api, _others } = alone().await;
    let undisturbed = joined(&api.stream("/v1/completions", &story(100)).await.rest().await);
    let mut stream = api.stream("/v1/completions", &story(100)).await;
    let first = stream.next_text().await;
    root.signal("KILL").await;
    root.finished().await;
    let _again = Banyan::start(&line);
    let events = stream.rest().await;
    tell_pause("root killed and started again, without a standby", &first, &events);
    assert_eq!(first.text() + &joined(&events), undisturbed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_without_a_standby_finishes_what_it_has_and_leaves_the_rest_to_its_next_life() {
    let Alone { root, line, api, _others } = alone().await;
    let undisturbed = joined(&api.stream("/v1/completions", &story(100)).await.rest().await);
    let mut stream = api.stream("/v1/completions", &story(100)).await;
    let first = stream.next_text().await;
    root.signal("TERM").await;
    root.told("about to leave").await;
    let meanwhile =
        tokio::spawn(async move { api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await });
    let events = stream.rest().await;
    tell_pause("root told to end, without a standby", &first, &events);
    assert_eq!(first.text() + &joined(&events), undisturbed);
    let left = root.finished().await;
    assert_eq!(left.code, 0, "{}", left.err);
    let _again = Banyan::start(&line);
    assert_eq!(meanwhile.await.expect("no panic").text(), "1 2 3");
}

async fn api_when_ready(api: &Banyan) -> Http {
    let api = api.api().await;
    eventually("the API is ready", || async { api.get("/readyz").await.status.is_success().then_some(()) }).await;
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_killed_api_goes_on_at_another() {
    let mut grove = Grove::start().await;
    let (first, second) = (grove.api(0).await, grove.api(1).await);
    let undisturbed = first.stream("/v1/completions", &story(100)).await.rest().await;
    let mut stream = first.stream("/v1/completions", &story(100)).await;
    let mut seen = vec![stream.next_text().await, stream.next_text().await];
    grove.apis.remove(0).signal("KILL").await;
    while let Some(event) = stream.next().await {
        seen.push(event);
    }
    let last = seen.last().expect("two were read").id.clone();
    seen.extend(second.stream_with("/v1/completions", ("last-event-id", &last), &story(100)).await.rest().await);
    assert_eq!(joined(&seen), joined(&undisturbed));
    assert_eq!(seen.last().map(|event| event.data.as_str()), Some("[DONE]"));
    let ids: BTreeSet<String> =
        seen.iter().filter(|event| event.data != "[DONE]").map(|event| event.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "one answer: {ids:?}");
    // Somebody who comes back to nothing is told so.
    let nothing = last.replace(|digit: char| digit.is_ascii_digit(), "7");
    let nothing = second.post_with("/v1/completions", ("last-event-id", &nothing), &story(100)).await;
    assert_eq!(nothing.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_the_same_key_gets_the_same_answer_wherever_it_asks() {
    let grove = Grove::start().await;
    let (first, second) = (grove.api(0).await, grove.api(1).await);
    // Without a seed, so that two generations would differ.
    let body = json!({ "model": "fake", "prompt": "once", "max_tokens": 40, "ignore_eos": true });
    let key = ("idempotency-key", "the very same");
    let path = "/v1/completions";
    let (one, other) = tokio::join!(first.post_with(path, key, &body), second.post_with(path, key, &body));
    let late = second.post_with(path, key, &body).await;
    assert_eq!((one.json()["id"].as_str(), one.text()), (other.json()["id"].as_str(), other.text()));
    assert_eq!(one.text(), late.text());
    let mut generated = 0;
    for name in ["a", "b"] {
        let node = status(&grove.etcd, name, "it answers", |_| true).await;
        generated += node["tokens"].as_u64().expect("a count");
    }
    assert_eq!(generated, 40, "one generation for three requests");
    let mut changed = body.clone();
    changed["max_tokens"] = json!(41);
    assert_eq!(second.post_with(path, key, &changed).await.status, StatusCode::CONFLICT);
    let elsewhere = first.post_with(path, ("idempotency-key", "another"), &body).await;
    assert_ne!(elsewhere.text(), one.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumable_stream_outlives_its_connection_until_it_is_ended() {
    let grove = Grove::start().await;
    let (first, second) = (grove.api(0).await, grove.api(1).await);
    let mut body = story(3000);
    body["resumable"] = json!(true);
    let mut stream = first.stream("/v1/completions", &body).await;
    let seen = stream.next_text().await;
    drop(stream);
    let mut stream = second.stream_with("/v1/completions", ("last-event-id", &seen.id), &body).await;
    let next = stream.next_text().await;
    assert_eq!(next.json()["id"], seen.json()["id"]);
    drop(stream);
    let id = seen.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(first.delete(&format!("/v1/completions/{id}")).await.status, StatusCode::NO_CONTENT);
    for name in ["a", "b"] {
        status(&grove.etcd, name, "nothing runs", |node| node["running"] == 0).await;
    }
    assert_eq!(grove.why(&id).await["state"], "cancelled");

    // Before an event has told its id, the key that asked for it names it.
    let key = ("idempotency-key", "asked-and-regretted");
    let stream = first.stream_with("/v1/completions", key, &body).await;
    drop(stream);
    assert_eq!(second.delete("/v1/completions").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(second.delete_with("/v1/completions", key).await.status, StatusCode::NO_CONTENT);
    for name in ["a", "b"] {
        status(&grove.etcd, name, "nothing runs", |node| node["running"] == 0).await;
    }
    assert_eq!(grove.nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_ended_with_all_its_choices() {
    let grove = Grove::start().await;
    let api = grove.api(0).await;
    let mut body = story(3000);
    (body["resumable"], body["n"]) = (json!(true), json!(3));
    let mut stream = api.stream("/v1/completions", &body).await;
    let seen = stream.next_text().await;
    drop(stream);
    let id = seen.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(grove.api(1).await.delete(&format!("/v1/completions/{id}")).await.status, StatusCode::NO_CONTENT);
    status(&grove.etcd, "root", "nothing lives", |root| root["live"] == 0).await;
    for name in ["a", "b"] {
        status(&grove.etcd, name, "nothing runs", |node| node["running"] == 0).await;
    }
    assert_eq!(grove.why(&id).await["state"], "cancelled");
}

//! A whole tree in one process: every part over loopback sockets, engines without weights.
//!
//! What one crate promises alone is tested there; here is what only all of them together can break.

use std::{collections::BTreeMap, time::Duration};

use banyan_tests::{
    Cluster, eventually,
    http::{Events, joined},
    query::{self, Ended},
};
use futures::future::join_all;
use hyper::StatusCode;
use serde_json::{Value, json};

/// Slow enough to do something while an answer streams, quick enough for a suite.
const SLOW: Duration = Duration::from_millis(20);

fn numbers_to(last: usize) -> String {
    (1..=last).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn many_distinct_queries_at_once_never_mix() {
    let cluster = Cluster::builder().slots(4).node("a", "root").node("b", "root").node("c", "a").start().await;
    let api = cluster.api();
    let asked = (0..200_usize).map(|number| async move {
        let last = 1 + number % 61;
        let body = json!({ "model": "fake", "prompt": format!("[[count {last}]] {number}"), "max_tokens": 100, "stream": true });
        (last, api.stream("/v1/completions", &body).await.rest().await)
    });
    for (last, events) in join_all(asked).await {
        assert_eq!(joined(&events), numbers_to(last));
        assert_eq!(events.last().map(|event| event.data.as_str()), Some("[DONE]"));
    }
    cluster.until("root", "nothing is left over", |root| root.live == 0 && root.waiting == 0).await;
    for node in ["a", "b", "c"] {
        cluster.until(node, "nothing runs or waits", |node| node.running == 0 && node.queued == 0).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_arrives_token_by_token() {
    let cluster = Cluster::builder().token_time(SLOW).node("a", "root").start().await;
    let body = json!({ "model": "fake", "messages": [{ "role": "user", "content": "[[count 12]]" }], "stream": true });
    let events = cluster.api().stream("/v1/chat/completions", &body).await.rest().await;
    let pieces: Vec<_> = events.iter().filter(|event| !event.text().is_empty()).collect();
    assert_eq!(pieces.len(), 12, "{events:?}");
    // Twelve tokens of 20 ms each can't have been kept back and sent together.
    let spread = pieces[11].at - pieces[0].at;
    assert!(spread >= SLOW * 6, "all came within {spread:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_never_infers() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).start().await;
    // With nobody below it, even an idle root only keeps the query.
    let mut waiting = query::ask(cluster.root(), "[[count 3]]", 8, 1).await;
    let root = cluster.until("root", "the query waits at the root", |root| root.live == 1).await;
    assert_eq!((root.running, root.models.len()), (0, 0));
    cluster.add("a", "root").await;
    assert!(matches!(waiting.end().await, Ended::Finished(_)));
    assert_eq!(waiting.text, "1 2 3");

    let root = cluster.root().to_owned();
    let holders = join_all((0..6).map(|seed| {
        let root = &root;
        async move {
            let mut asked = query::ask(root, "who?", 8, seed).await;
            assert!(matches!(asked.end().await, Ended::Finished(_)));
            asked.places
        }
    }))
    .await;
    for places in holders {
        let ran: Vec<&str> = places.iter().filter(|(_, running)| *running).map(|(node, _)| node.as_str()).collect();
        assert_eq!(ran, ["a"]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_node_passes_queries_on_to_its_children_in_turn() {
    let cluster = Cluster::builder().token_time(SLOW).slots(1).node("a", "root").node("b", "a").node("c", "a").start().await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let mut asked = query::ask(cluster.root(), "[[count 60]]", 64, 1).await;
        asked.read_tokens(1).await;
        running.push(asked);
    }
    let mut holders: Vec<String> = running.iter().filter_map(|asked| Some(asked.places.last()?.0.clone())).collect();
    holders.sort();
    assert_eq!(holders, ["a", "b", "c"]);
    drop(running);
    cluster.until("root", "all were cancelled", |root| root.live == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_mid_answer_loses_no_query_and_repeats_no_token() {
    let mut cluster =
        Cluster::builder().token_time(SLOW).slots(8).node("a", "root").node("b", "root").node("c", "root").start().await;
    let root = cluster.root().to_owned();
    let prompts: Vec<(String, u64)> = (0..9).map(|number| (format!("tell me {number}"), 100 + number)).collect();
    let ask_all = || prompts.iter().map(|(prompt, seed)| query::ask(&root, prompt, 40, *seed));

    let mut undisturbed = join_all(ask_all()).await;
    for asked in &mut undisturbed {
        assert!(matches!(asked.end().await, Ended::Finished(_)));
    }

    let mut disturbed = join_all(ask_all()).await;
    for asked in &mut disturbed {
        asked.read_tokens(5).await;
    }
    let lost = disturbed.iter().filter(|asked| asked.places.last().is_some_and(|(node, _)| node == "a")).count();
    assert!(lost > 0, "round-robin gave `a` something to do");
    cluster.kill("a");
    for (asked, other) in disturbed.iter_mut().zip(&undisturbed) {
        let end = asked.end().await;
        assert!(matches!(end, Ended::Finished(_)), "{end:?}");
        // Reading checks that no position repeats or is missing.
        assert_eq!((&asked.tokens, &asked.text), (&other.tokens, &other.text));
    }
    cluster.until("root", "nothing is left over", |root| root.live == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_parent_dies_attaches_to_the_grandparent_and_goes_on() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).node("a", "root").node("b", "a").start().await;
    // `a` is busy, so `b` has the second one.
    let mut first = query::ask(cluster.root(), "[[count 100]]", 128, 1).await;
    first.read_tokens(1).await;
    let mut second = query::ask(cluster.root(), "[[count 60]]", 64, 1).await;
    second.read_tokens(1).await;
    assert_eq!(second.places.last().map(|(node, _)| node.as_str()), Some("b"));
    cluster.kill("a");
    assert!(matches!(second.end().await, Ended::Finished(_)));
    assert_eq!(second.text, numbers_to(60));
    let b = cluster.until("b", "b hangs below the root", |b| b.attached == "root").await;
    assert_eq!(b.parent, "a", "the wanted parent stays");
    assert!(matches!(first.end().await, Ended::Finished(_)), "b finishes what a began");
    assert_eq!(first.text, numbers_to(100));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_the_node() {
    let cluster = Cluster::builder().token_time(SLOW).slots(1).node("a", "root").start().await;
    let endless = json!({ "model": "fake", "prompt": "[[count 3000]]", "max_tokens": 3000, "stream": true });
    let mut running = cluster.api().stream("/v1/completions", &endless).await;
    running.next_text().await;
    // The second one waits, in `a`'s queue or at the root; its headers come with its first token or a heartbeat.
    let api = cluster.api();
    let queued = tokio::spawn(async move { api.stream("/v1/completions", &endless).await });
    cluster.until("root", "both are live", |root| root.live == 2).await;
    queued.abort();
    cluster.until("root", "the waiting one is gone", |root| root.live == 1).await;
    cluster.until("a", "its neighbour is not disturbed", |a| a.running == 1 && a.queued == 0).await;
    running.next_text().await;
    drop(running);
    cluster.until("root", "the running one is gone", |root| root.live == 0).await;
    cluster.until("a", "the slot is free", |a| a.running == 0).await;
    let quick = json!({ "model": "fake", "prompt": "[[count 2]]", "max_tokens": 8 });
    assert_eq!(cluster.api().post("/v1/completions", &quick).await.text(), "1 2");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_text_wherever_it_runs() {
    let cluster = Cluster::builder().slots(1).node("a", "root").node("b", "root").node("c", "b").start().await;
    let ask = |seed: u64| {
        let api = cluster.api();
        async move {
            let body = json!({ "model": "fake", "prompt": "once", "max_tokens": 20, "seed": seed });
            api.post("/v1/completions", &body).await.text()
        }
    };
    let texts = join_all((0..12).map(|_| ask(7))).await;
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_ne!(ask(8).await, texts[0]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_what_is_wrong() {
    let cluster = Cluster::builder().context(64).node("a", "root").start().await;
    let api = cluster.api();
    let error = |answer: banyan_tests::http::Answer| {
        let error = answer.json()["error"].clone();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{key} is missing in {error}");
        }
        (answer.status, error)
    };
    let completion = |change: Value| {
        let mut body = json!({ "model": "fake", "prompt": "one", "max_tokens": 4 });
        for (key, value) in change.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        async move { error(api.post("/v1/completions", &body).await) }
    };

    let (status, told) = error(api.post_bytes("/v1/completions", "{\"model\":").await);
    assert_eq!((status, told["type"].as_str()), (StatusCode::BAD_REQUEST, Some("invalid_request_error")));

    let (status, told) = completion(json!({ "model": "no-such-model" })).await;
    assert_eq!((status, told["code"].as_str()), (StatusCode::NOT_FOUND, Some("model_not_found")));
    assert!(told["message"].as_str().is_some_and(|message| message.contains("fake")), "{told}");

    let long = "word ".repeat(200);
    let (status, told) = completion(json!({ "prompt": long })).await;
    assert_eq!((status, told["code"].as_str()), (StatusCode::BAD_REQUEST, Some("context_length_exceeded")));

    for (param, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(2)),
        ("max_tokens", json!(-3)),
        ("n", json!(0)),
        ("n", json!(1_000_000)),
        ("stop", json!(["a", "b", "c", "d", "e", 5])),
        ("seed", json!("x")),
        ("suffix", json!("not offered")),
    ] {
        let (status, told) = completion(json!({ param: value })).await;
        assert_eq!((status, told["param"].as_str()), (StatusCode::BAD_REQUEST, Some(param)), "{told}");
    }

    assert_eq!(api.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    // And the tree is none the worse for it.
    assert_eq!(api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 2]]" })).await.text(), "1 2");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_is_an_error_and_the_node_goes_on() {
    let cluster = Cluster::builder().node("a", "root").start().await;
    let api = cluster.api();
    let failed = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[fail]]" })).await;
    assert!(failed.status.is_server_error(), "{failed:?}");
    assert!(failed.json()["error"]["message"].is_string());
    let fine = json!({ "model": "fake", "prompt": "[[count 2]]" });
    eventually("the node answers again", || async {
        let answer = api.post("/v1/completions", &fine).await;
        answer.status.is_success().then(|| assert_eq!(answer.text(), "1 2"))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_wait_go_wherever_room_appears() {
    // One slot each; `b` joins when `a` is full and more waits.
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).node("a", "root").start().await;
    let mut long = query::ask(cluster.root(), "[[count 2000]]", 2048, 1).await;
    long.read_tokens(1).await;
    let mut queued = query::ask(cluster.root(), "[[count 3]]", 8, 1).await;
    cluster.until("root", "both are live", |root| root.live == 2).await;
    cluster.add("b", "root").await;
    assert!(matches!(queued.end().await, Ended::Finished(_)));
    assert_eq!(queued.places.last().map(|(node, _)| node.as_str()), Some("b"), "{:?}", queued.places);
    drop(long);
    cluster.until("root", "nothing is left over", |root| root.live == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_files_are_served() {
    let cluster = Cluster::builder().node("a", "root").start().await;
    let page = cluster.api().get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    let header = |name: &str| page.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert!(header("content-type").starts_with("text/html"), "{:?}", page.headers);
    assert!(header("content-security-policy").contains("default-src 'none'"), "{:?}", page.headers);
    assert_eq!(cluster.api().get("/livez").await.status, StatusCode::OK);
    let models = cluster.api().get("/v1/models").await.json();
    assert_eq!((models["object"].as_str(), models["data"][0]["id"].as_str()), (Some("list"), Some("fake")));
    let legacy = cluster.api().post("/arranca/", &json!({ "text": "[[count 3]]", "timestamp": 1 })).await.json();
    assert_eq!(legacy["text"], "[[count 3]]1 2 3", "{legacy}");
    assert!(legacy["request_id"].is_u64(), "{legacy}");
    cluster.stop().await;
}

/// The tree as its events tell it.
struct Seen {
    events: Events,
    nodes: BTreeMap<String, Value>,
    /// All that was told of queries, in order: state, node and way.
    queries: Vec<(String, String, Vec<String>)>,
    last: String,
    text: String,
}

impl Seen {
    fn new(events: Events) -> Seen {
        Seen { events, nodes: BTreeMap::new(), queries: Vec::new(), last: String::new(), text: String::new() }
    }

    /// Reads events until they have told something.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        let read = async {
            while !wanted(self) {
                let event = self.events.next().await.expect("the events go on");
                let news = event.json();
                for node in news["nodes"].as_array().expect("nodes") {
                    let known = self.nodes.entry(node["name"].as_str().expect("a name").to_owned()).or_insert_with(|| json!({}));
                    for (field, value) in node.as_object().expect("an object") {
                        known[field] = value.clone();
                    }
                }
                for name in news["gone"].as_array().into_iter().flatten() {
                    self.nodes.remove(name.as_str().expect("a name"));
                }
                for query in news["queries"].as_array().expect("queries") {
                    let text = |field: &str| query[field].as_str().expect("a text").to_owned();
                    let trail = serde_json::from_value(query["trail"].clone()).expect("names");
                    self.queries.push((text("state"), text("node"), trail));
                }
                (self.last, self.text) = (event.id, std::mem::take(&mut self.text) + &event.data);
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), read).await.is_ok(), "never seen: {what}");
    }

    fn state(&self, node: &str) -> &str {
        self.nodes.get(node).and_then(|node| node["state"].as_str()).unwrap_or("none")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_looks_sees_nodes_come_work_and_go_and_queries_on_their_ways() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).node("a", "root").node("b", "a").start().await;
    let api = cluster.api();
    let mut seen = Seen::new(api.events("/v1/tree/events", &[]).await);
    seen.until("all are ready", |seen| ["root", "a", "b"].iter().all(|name| seen.state(name) == "ready")).await;
    assert_eq!((&seen.nodes["a"]["parent"], &seen.nodes["b"]["parent"]), (&json!("root"), &json!("a")));
    assert_eq!((&seen.nodes["b"]["slots"], &seen.nodes["b"]["role"]), (&json!(1), &json!("node")));

    let body = json!({ "model": "fake", "prompt": "[[count 150]] elderberries", "max_tokens": 200, "stream": true });
    let mut first = api.stream("/v1/completions", &body).await;
    first.next_text().await;
    let mut second = api.stream("/v1/completions", &body).await;
    let id = second.next_text().await.json()["id"].as_str().expect("an id").to_owned();
    let ran = |seen: &Seen, node: &str, way: &[&str]| {
        seen.queries.iter().any(|(state, at, trail)| state == "running" && at == node && trail == way)
    };
    seen.until("one runs on a, and the other went on to b", |seen| {
        ran(seen, "a", &["root", "a"]) && ran(seen, "b", &["root", "a", "b"])
    })
    .await;
    seen.until("tokens come from b, which is busy", |seen| {
        seen.state("b") == "busy" && seen.nodes["b"]["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0)
    })
    .await;
    let way = api.get(&format!("/v1/tree/queries/{id}")).await.json();
    assert_eq!((&way["state"], &way["attempts"][0]["holder"]), (&json!("running"), &json!("b")), "{way}");

    // Whoever comes back hears what was missed, and not all of it again.
    let again = api.events("/v1/tree/events", &[("last-event-id", &seen.last)]).await;
    let missed = std::mem::replace(&mut seen.events, again).next().await;
    assert!(missed.is_some_and(|event| event.json().get("whole").is_none()));
    drop((first, second));
    seen.until("both were cancelled", |seen| seen.queries.iter().filter(|(state, ..)| state == "cancelled").count() == 2).await;
    assert!(!seen.text.contains("elderberries") && !seen.text.contains("everybody"), "owners and texts are in no event");

    // A process that dies leaves its key behind and is seen as lost; what is dropped within a process gives it back at once.
    cluster.kill("b");
    seen.until("b is forgotten", |seen| seen.state("b") == "none").await;
    cluster.add("c", "root").await;
    seen.until("c came", |seen| seen.state("c") == "ready").await;
    let moved = api.post("/v1/tree/nodes/c/move", &json!({ "parent": "a" })).await;
    assert_eq!(moved.status, StatusCode::OK, "{:?}", moved.json());
    seen.until("c moved", |seen| seen.nodes["c"]["parent"] == "a").await;
    assert_eq!(api.post("/v1/tree/nodes/c/move", &json!({ "parent": "nobody" })).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.post("/v1/tree/nodes/nobody/drain", &json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.get("/v1/tree/nodes/c").await.json()["slots"], 1);
    let log = api.get("/v1/tree/nodes/c/log?last=5").await.json();
    assert!(log["data"].as_array().is_some_and(|decisions| !decisions.is_empty()), "{log}");
    assert_eq!(api.post("/v1/tree/nodes/c/drain", &json!({})).await.status, StatusCode::OK);
    seen.until("c left", |seen| ["draining", "none"].contains(&seen.state("c"))).await;
    seen.until("c is forgotten", |seen| seen.state("c") == "none").await;
    cluster.stop().await;
}

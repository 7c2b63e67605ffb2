//! Parts that leave while the tree is under load, as real processes: nothing is lost, and what runs finishes or goes on elsewhere.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use banyan_tests::{
    Banyan, eventually,
    http::{Http, joined},
    process::banyan,
};
use futures::future::join_all;
use serde_json::{Value, json};

/// A registry, a root and an API, as three processes.
struct Grove {
    _registry: Banyan,
    _root: Banyan,
    _api: Banyan,
    etcd: String,
    http: Http,
}

async fn grove() -> Grove {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {etcd}"));
    root.printed("is ready").await;
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    Grove { _registry: registry, _root: root, _api: api, etcd, http }
}

impl Grove {
    /// A node that runs two queries at once and lets two more wait.
    async fn node(&self, name: &str, parent: &str) -> Banyan {
        let node = Banyan::start(&format!(
            "node run {name} --parent {parent} --engine fake --batch 2 --token-time 20ms --listen 127.0.0.1:0 --etcd {}",
            self.etcd
        ));
        node.printed("is ready").await;
        node
    }

    async fn ready(&self) {
        let http = self.http;
        eventually("the API is ready", || async move { http.get("/readyz").await.status.is_success().then_some(()) }).await;
    }

    /// The tree as `node tree -o json` shows it, once it is as wanted.
    async fn tree(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) {
        eventually(what, || async {
            let seen = banyan(&format!("node tree -o json --etcd {}", self.etcd)).await;
            let nodes: Vec<Value> = serde_json::from_str(&seen.out).ok()?;
            wanted(&nodes).then_some(())
        })
        .await;
    }

    /// How many attempts each query took.
    async fn attempts(&self, ids: &[String]) -> Vec<usize> {
        join_all(ids.iter().map(|id| async move {
            let why = banyan(&format!("why {id} -o json --etcd {}", self.etcd)).await.json();
            why["attempts"].as_array().expect("attempts").len()
        }))
        .await
    }
}

fn named<'a>(nodes: &'a [Value], name: &str) -> Option<&'a Value> {
    nodes.iter().find(|node| node["name"] == name)
}

/// Counts to `last`, as a stream whose text must be complete. Gives the query's id.
async fn count(http: Http, last: usize) -> String {
    let body = json!({ "model": "fake", "prompt": format!("[[count {last}]]"), "max_tokens": 2 * last, "stream": true });
    let events = http.stream("/v1/completions", &body).await.rest().await;
    let wanted: Vec<String> = (1..=last).map(|number| number.to_string()).collect();
    assert_eq!(joined(&events), wanted.join(" "), "{events:?}");
    events[0].json()["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_node_that_gets_sigterm_finishes_what_it_runs_and_gives_back_what_waits() {
    let grove = grove().await;
    let a = grove.node("a", "root").await;
    grove.ready().await;
    // Two run on `a`, two wait there, and two at the root.
    let load = tokio::spawn(join_all((0..6).map(|_| count(grove.http, 50))));
    grove.tree("a is full", |nodes| named(nodes, "a").is_some_and(|a| a["running"] == 2 && a["queued"] == 2)).await;
    let _b = grove.node("b", "root").await;
    a.signal("TERM").await;
    let left = a.finished().await;
    assert_eq!(left.code, 0, "{}", left.err);
    let names = banyan(&format!("node list -o name --etcd {}", grove.etcd)).await;
    assert!(!names.out.lines().any(|name| name == "a"), "its lease was revoked: {}", names.out);
    let ids = load.await.expect("every answer is complete");
    let attempts = grove.attempts(&ids).await;
    assert!(attempts.iter().filter(|&&attempts| attempts == 1).count() >= 2, "what ran there finished there: {attempts:?}");
}

#[tokio::test]
async fn what_the_deadline_interrupts_goes_on_elsewhere_behind_what_was_delivered() {
    let grove = grove().await;
    let a = grove.node("a", "root").await;
    grove.ready().await;
    let load = tokio::spawn(join_all((0..2).map(|_| count(grove.http, 150))));
    grove.tree("a is full", |nodes| named(nodes, "a").is_some_and(|a| a["running"] == 2)).await;
    let _b = grove.node("b", "root").await;
    let drained = banyan(&format!("node drain a --deadline 300ms -o json --etcd {}", grove.etcd)).await;
    assert_eq!(drained.json()["name"], "a", "{}", drained.err);
    assert_eq!(a.finished().await.code, 0);
    let ids = load.await.expect("every answer is complete");
    assert_eq!(grove.attempts(&ids).await, [2, 2], "once on a, once on b");
}

#[tokio::test]
async fn the_children_of_a_node_that_leaves_go_elsewhere_first_and_come_back() {
    let grove = grove().await;
    let a = grove.node("a", "root").await;
    let _b = grove.node("b", "a").await;
    let _c = grove.node("c", "b").await;
    grove.ready().await;
    let load = tokio::spawn(join_all((0..6).map(|_| count(grove.http, 100))));
    grove.tree("all are full", |nodes| nodes.iter().filter(|node| node["running"] == 2).count() == 3).await;
    a.signal("TERM").await;
    grove.tree("b hangs below the root", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == "root")).await;
    let ids = load.await.expect("every answer is complete");
    assert_eq!(grove.attempts(&ids).await, [1; 6], "nothing had to be sent twice");
    assert_eq!(a.finished().await.code, 0);
    let _again = grove.node("a", "root").await;
    grove.tree("b is back below a", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == "a")).await;
}

#[tokio::test]
async fn a_move_under_load_moves_the_link_and_nothing_else() {
    let grove = grove().await;
    let _nodes = [grove.node("a", "root").await, grove.node("b", "a").await, grove.node("c", "b").await];
    grove.ready().await;
    let load = tokio::spawn(join_all((0..16).map(|_| count(grove.http, 30))));
    for parent in ["root", "a", "root", "a"] {
        let moved = banyan(&format!("node move b --parent {parent} -o json --etcd {}", grove.etcd)).await.json();
        assert_eq!(moved["parent"], parent);
        grove.tree("the link follows", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == parent)).await;
    }
    let ids = load.await.expect("every answer is complete");
    for id in ids {
        let why = banyan(&format!("why {id} -o json --etcd {}", grove.etcd)).await.json();
        for attempt in why["attempts"].as_array().expect("attempts") {
            // Queries that wait in a queue may be recalled, which is no loss.
            assert_ne!(attempt["outcome"], "lost", "{why}");
        }
    }
}

/// What runs as a process of its own.
struct Part {
    name: &'static str,
    line: String,
    process: Banyan,
}

impl Part {
    /// Told to end, and started again when it has.
    async fn again(self) -> Part {
        self.process.signal("TERM").await;
        let left = self.process.finished().await;
        assert_eq!(left.code, 0, "{}: {}", self.name, left.err);
        let process = Banyan::start(&self.line);
        process.printed("is ready").await;
        Part { process, ..self }
    }
}

/// Waits until a root says that it is `ready`, or waits as a `standby`.
async fn is(root: &str, state: &str, etcd: &str) {
    eventually(&format!("{root} is {state}"), || async {
        let seen = banyan(&format!("node log {root} --last 1 -o json --etcd {etcd}")).await;
        let status: Value = serde_json::from_str(&seen.out).ok()?;
        (status["state"] == state).then_some(())
    })
    .await;
}

/// As behind a load balancer: who is told to go elsewhere, or finds nobody, asks the next API.
async fn ask_somebody(apis: &Mutex<Vec<Http>>, turn: usize) {
    let apis = apis.lock().expect("nobody panics with it").clone();
    let body = json!({ "model": "fake", "prompt": "[[count 20]]", "max_tokens": 40, "stream": true });
    for step in 0..apis.len() {
        if let Ok(Ok(events)) = apis[(turn + step) % apis.len()].try_stream("/v1/completions", &body).await {
            let events = events.rest().await;
            assert_eq!(joined(&events), "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", "{events:?}");
            assert_eq!(events.last().map(|event| event.data.as_str()), Some("[DONE]"), "{events:?}");
            return;
        }
    }
    panic!("no API took a query");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_everything_under_steady_load_fails_no_query() {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let start = |name, line: &str| {
        let line = format!("{line} --etcd {etcd} --listen 127.0.0.1:0");
        Part { name, process: Banyan::start(&line), line }
    };
    let mut roots = vec![start("root", "node run root --standby")];
    is("root", "ready", &etcd).await;
    roots.push(start("spare", "node run spare --standby"));
    is("spare", "standby", &etcd).await;
    let mut nodes = Vec::new();
    for (name, parent) in [("a", "root"), ("b", "a"), ("c", "a"), ("d", "root")] {
        let node = start(name, &format!("node run {name} --parent {parent} --engine fake --batch 2 --token-time 20ms"));
        node.process.printed("is ready").await;
        nodes.push(node);
    }
    let api = || async {
        let api = start("api", "api run").process;
        let http = api.api().await;
        let ready = || async move { http.try_get("/readyz").await.is_ok_and(|answer| answer.status.is_success()).then_some(()) };
        eventually("the API is ready", ready).await;
        (api, http)
    };
    let mut apis = [api().await, api().await];
    let known = Arc::new(Mutex::new(apis.iter().map(|(_, http)| *http).collect::<Vec<_>>()));
    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(join_all((0..6_usize).map(|client| {
        let (known, over) = (known.clone(), over.clone());
        async move {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                ask_somebody(&known, client + asked).await;
                asked += 1;
            }
            asked
        }
    })));
    let mut restarted = Vec::new();
    for node in nodes {
        restarted.push(node.again().await);
    }
    // Whoever reigns hands over, and waits when it is back.
    for (leaves, takes) in [("root", "spare"), ("spare", "root")] {
        let reigning = roots.remove(0);
        roots.push(reigning.again().await);
        is(leaves, "standby", &etcd).await;
        is(takes, "ready", &etcd).await;
    }
    for (place, running) in apis.iter_mut().enumerate() {
        let next = api().await;
        known.lock().expect("nobody panics with it")[place] = next.1;
        let (old, _) = std::mem::replace(running, next);
        old.signal("TERM").await;
        assert_eq!(old.finished().await.code, 0);
    }
    over.store(true, Ordering::Relaxed);
    let asked = load.await.expect("every answer is complete");
    assert!(asked.iter().all(|&asked| asked > 0), "{asked:?}");
    let tree = banyan(&format!("node tree -o json --etcd {etcd}")).await.json();
    let places =
        ["a", "b", "c", "d"].map(|name| tree.as_array().and_then(|tree| named(tree, name)).map(|node| node["attached"].clone()));
    assert_eq!(places, ["root", "a", "a", "root"].map(|parent| Some(json!(parent))), "{tree}");
}

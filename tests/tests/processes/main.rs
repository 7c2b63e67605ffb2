//! The built binary as real processes, with the embedded registry: nothing to install, no privilege.

mod autoscale;
mod commands;
mod deploy;
mod guide;
mod observe;
mod security;
mod shell;

use std::{fs, path::Path};

use banyan_tests::{
    Banyan, eventually,
    http::joined,
    process::{Finished, banyan},
};
use futures::future::join_all;
use hyper::StatusCode;
use serde_json::{Value, json};

/// A registry and a root, as two processes.
async fn grove() -> (Banyan, Banyan, String) {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {etcd}"));
    root.printed("is ready").await;
    (registry, root, etcd)
}

fn node(name: &str, parent: &str, etcd: &str) -> Banyan {
    Banyan::start(&format!(
        "node run {name} --parent {parent} --engine fake --token-time 20ms --listen 127.0.0.1:0 --etcd {etcd}"
    ))
}

/// The tree as `node tree -o json` shows it, once it is as wanted.
async fn tree(etcd: &str, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(what, || async {
        let seen = banyan(&format!("node tree -o json --etcd {etcd}")).await;
        let nodes: Vec<Value> = serde_json::from_str(&seen.out).ok()?;
        wanted(&nodes).then_some(nodes)
    })
    .await
}

fn named<'a>(nodes: &'a [Value], name: &str) -> Option<&'a Value> {
    nodes.iter().find(|node| node["name"] == name)
}

fn failed(finished: &Finished, code: i32, texts: &[&str]) {
    assert_eq!(finished.code, code, "{finished:?}");
    for text in texts {
        assert!(finished.err.contains(text), "{text:?} is missing in: {}", finished.err);
    }
    assert!(!finished.err.contains("panicked"), "{}", finished.err);
}

#[tokio::test]
async fn up_serves_a_tree_and_ends_well_on_ctrl_c() {
    let up = Banyan::up("--nodes 2").await;
    let api = up.api().await;
    assert_eq!(api.get("/readyz").await.status, StatusCode::OK);
    let etcd = up.fact("registry").await;
    let nodes = banyan(&format!("node list -o name --etcd {etcd}")).await;
    assert_eq!(nodes.out.split_whitespace().collect::<Vec<_>>(), ["node-1", "node-2", "root"]);
    let answer = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await;
    assert_eq!(answer.text(), "1 2 3");
    up.signal("INT").await;
    let finished = up.finished().await;
    assert_eq!(finished.code, 0, "{}", finished.err);
}

#[tokio::test]
async fn ctrl_c_ends_answers_in_seconds_and_a_second_one_at_once() {
    let endless = json!({ "model": "fake", "prompt": "[[count 3000]]", "max_tokens": 3000, "stream": true });
    let up = Banyan::up("--nodes 1").await;
    let mut stream = up.api().await.stream("/v1/completions", &endless).await;
    stream.next_text().await;
    let asked = std::time::Instant::now();
    up.signal("INT").await;
    let events = stream.rest().await;
    assert!(events.last().is_some_and(|event| event.data.contains("\"error\"")), "it is told why it ends: {events:?}");
    let finished = up.finished().await;
    assert_eq!(finished.code, 0, "{}", finished.err);
    assert!(asked.elapsed().as_secs() < 15, "it took {:?}", asked.elapsed());

    let up = Banyan::up("--nodes 1").await;
    let mut stream = up.api().await.stream("/v1/completions", &endless).await;
    stream.next_text().await;
    up.signal("INT").await;
    up.told("stopping").await;
    // Those that come at once count as the first one, and the first one would lead to a clean end.
    assert_eq!(up.signalled_to_its_end("INT").await.code, 130);
}

#[tokio::test]
async fn the_main_job_works_without_any_network() {
    let up = Banyan::start("up --model banyan-tiny --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0");
    up.printed("Ctrl-C stops everything").await;
    let body =
        json!({ "model": "banyan-tiny", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": true });
    let events = up.api().await.stream("/v1/completions", &body).await.rest().await;
    let text = joined(&events);
    assert!(text.split_whitespace().count() >= 8, "{text:?}");
    assert!(events.iter().filter(|event| !event.text().is_empty()).count() > 8, "it came in pieces: {events:?}");
    // The same model says where texts lie, whichever node is asked and whoever runs beside it …
    let texts = ["The cat sat on the mat.", "A cat was on the mat.", "She went to the shop to buy some bread."];
    let body = json!({ "model": "banyan-tiny", "input": texts, "encoding_format": "float" });
    let api = up.api().await;
    let (first, again) = tokio::join!(api.post("/v1/embeddings", &body), api.post("/v1/embeddings", &body));
    assert_eq!(first.json()["data"], again.json()["data"]);
    let lies = |text: usize| -> Vec<f64> {
        let numbers = first.json()["data"][text]["embedding"].as_array().expect("numbers").clone();
        numbers.iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let near = |a: usize, b: usize| {
        let (a, b) = (lies(a), lies(b));
        dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
    };
    assert_eq!(lies(0).len(), 256);
    assert!(near(0, 1) > near(0, 2) && near(0, 1) > near(1, 2), "{} {} {}", near(0, 1), near(0, 2), near(1, 2));
    // … and how likely they are.
    let mut score = Vec::new();
    for text in ["Once upon a time, there was a little girl.", "Once upon a time, there bread a little concrete."] {
        let body = json!({ "model": "banyan-tiny", "prompt": text, "echo": true, "logprobs": 0, "max_tokens": 0 });
        let answer = api.post("/v1/completions", &body).await.json();
        assert_eq!(answer["choices"][0]["text"], text);
        let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("numbers").clone();
        score.push(logprobs.iter().filter_map(serde_json::Value::as_f64).sum::<f64>() / logprobs.len() as f64);
    }
    assert!(score[0] > score[1] + 1.0, "{score:?}");
    up.signal("TERM").await;
    assert_eq!(up.finished().await.code, 0);
}

#[tokio::test]
async fn a_load_is_measured_by_clients_that_ask_again_and_by_clients_that_come_at_their_times() {
    let up = Banyan::up("--nodes 2 --token-time 1ms").await;
    let url = up.fact("page").await;
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("load.svg");
    let within = "--first-token-within 20s --each-token-within 20s --answer-within 20s";
    let line = format!("bench load --url {url} --concurrency 4 --rounds 2 --new 8 {within} --plot {} -o json", plot.display());
    let closed = banyan(&line).await.json();
    assert_eq!((&closed["answers"], &closed["tokens"], &closed["failed"]), (&json!(8), &json!(64), &json!(0)), "{closed}");
    assert_eq!(closed["goodput_per_s"], closed["answers_per_s"]);
    let counted = |name: &str| -> u64 {
        let bars = closed["histograms"][name].as_array().expect("bars");
        bars.iter().map(|bar| bar["count"].as_u64().expect("a number")).sum()
    };
    assert_eq!(["first_token", "each_token", "answer"].map(counted), [8, 8, 8]);
    assert!(fs::read_to_string(&plot).expect("a picture").contains("time to first token"));

    let line = format!("bench load --url {url}v1 --endpoint completions --rate 60 --time 1s --new 4 --answer-within 1ms -o json");
    let open = banyan(&line).await.json();
    let number = |name: &str| open[name].as_u64().expect("a number");
    assert_eq!(number("answers") + number("refused") + number("failed"), number("offered"), "{open}");
    assert!((30..120).contains(&number("offered")) && number("answers") > 0, "{open}");
    assert_eq!(open["goodput_per_s"], 0.0, "no answer of four tokens is that fast");
}

#[tokio::test]
async fn a_node_joins_a_running_up_with_its_name_and_its_parents() {
    let up = Banyan::up("--nodes 1").await;
    let etcd = up.fact("registry").await;
    let joined = node("my-name", "node-1", &etcd);
    joined.printed("node my-name is ready").await;
    let nodes = tree(&etcd, "it is in the tree", |nodes| named(nodes, "my-name").is_some()).await;
    assert_eq!(named(&nodes, "my-name").map(|node| &node["attached"]), Some(&json!("node-1")));
    joined.signal("TERM").await;
    assert_eq!(joined.finished().await.code, 0);
    // It gave its name back, so nobody has to wait for a lease to end.
    let names = banyan(&format!("node list -o name --etcd {etcd}")).await;
    assert!(!names.out.contains("my-name"), "{}", names.out);
}

#[tokio::test]
async fn a_tree_of_processes_is_seen_moved_and_explained() {
    let (_registry, _root, etcd) = grove().await;
    let (a, b) = (node("a", "root", &etcd), node("b", "a", &etcd));
    a.printed("is ready").await;
    b.printed("is ready").await;
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;
    let body = json!({ "model": "fake", "prompt": "tell", "max_tokens": 3 });
    let id = http.post("/v1/completions", &body).await.json()["id"].as_str().expect("an id").to_owned();

    let nodes = tree(&etcd, "all are in the tree", |nodes| nodes.len() == 3).await;
    let facts = ["name", "parent", "children", "address", "state", "running", "queued", "models"];
    for node in &nodes {
        for fact in facts {
            assert!(node.get(fact).is_some(), "{fact} is missing in {node}");
        }
    }
    assert_eq!((&nodes[0]["children"], &nodes[1]["children"]), (&json!(["a"]), &json!(["b"])));

    let log = banyan(&format!("node log a --last 50 -o json --etcd {etcd}")).await.json();
    assert_eq!((&log["name"], &log["parent"], &log["state"]), (&json!("a"), &json!("root"), &json!("ready")));
    assert_eq!(log["registry"], json!([etcd]));
    assert!(log["decisions"].as_array().is_some_and(|decisions| !decisions.is_empty()), "{log}");
    let card = banyan(&format!("node log a --etcd {etcd}")).await;
    for fact in ["name", "registry", "address", "parent", "children", "state", "running", "queued", "last decisions"] {
        assert!(card.out.lines().any(|line| line.starts_with(fact)), "{fact} is missing in: {}", card.out);
    }
    let drawn = banyan(&format!("node log --etcd {etcd}")).await;
    assert!(drawn.out.contains("└── a") && drawn.out.contains("    └── b"), "{}", drawn.out);

    let listed = banyan(&format!("node list -o json --etcd {etcd}")).await.json();
    for node in listed.as_array().expect("a list") {
        for fact in facts {
            assert!(node.get(fact).is_some(), "{fact} is missing in {node}");
        }
    }

    let why = banyan(&format!("why {id} -o json --etcd {etcd}")).await.json();
    assert_eq!((&why["state"], &why["tokens"]), (&json!("finished"), &json!(3)), "{why}");
    assert_eq!(why["attempts"].as_array().map(Vec::len), Some(1), "{why}");
    assert_eq!(why["attempts"][0]["holder"], "a", "{why}");
    let told = banyan(&format!("why {id} --etcd {etcd}")).await;
    assert!(told.out.contains("attempt 1") && told.out.contains("runs it"), "{}", told.out);

    let moved = banyan(&format!("node move b --parent root -o json --etcd {etcd}")).await.json();
    assert_eq!(moved["parent"], "root");
    tree(&etcd, "b hangs below the root", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == "root")).await;
    failed(&banyan(&format!("node move a --parent a --etcd {etcd}")).await, 2, &["`a`", "own parent"]);
    failed(&banyan(&format!("node move root --parent a --etcd {etcd}")).await, 4, &["root"]);
    banyan(&format!("node move b --parent a -o json --etcd {etcd}")).await.json();
    failed(&banyan(&format!("node move a --parent b --etcd {etcd}")).await, 4, &["below"]);
}

#[tokio::test]
async fn names_that_nobody_has_are_exit_3_and_bring_those_that_look_alike() {
    let (_registry, _root, etcd) = grove().await;
    failed(&banyan(&format!("node log roto --etcd {etcd}")).await, 3, &["`roto`", "did you mean `root`?"]);
    failed(&banyan(&format!("node move root --parent rot --etcd {etcd}")).await, 3, &["`rot`", "`root`"]);
    let unknown = "why chatcmpl-0192f3a4b5c67d8e9fa0b1c2d3e4f506 --etcd";
    failed(&banyan(&format!("{unknown} {etcd}")).await, 3, &["try:"]);
    failed(&banyan(&format!("node tree --cluster other --etcd {etcd}")).await, 3, &["banyan up"]);
}

#[tokio::test]
async fn of_nodes_that_race_for_a_name_one_wins_and_the_others_name_it() {
    let (_registry, _root, etcd) = grove().await;
    let mut racers: Vec<Banyan> = (0..6).map(|_| node("a", "root", &etcd)).collect();
    let winner = eventually("five have lost", || {
        let running: Vec<bool> = racers.iter_mut().map(Banyan::runs).collect();
        let one = (running.iter().filter(|runs| **runs).count() == 1).then(|| running.iter().position(|runs| *runs));
        async move { one.flatten() }
    })
    .await;
    let winner = racers.swap_remove(winner);
    let address = winner.printed("node a is ready at ").await;
    let address =
        address.trim().trim_start_matches("node a is ready at ").split(": child").next().expect("an address").to_owned();
    for lost in join_all(racers.into_iter().map(Banyan::finished)).await {
        failed(&lost, 4, &["the name a is taken", &address]);
    }
}

#[tokio::test]
async fn a_killed_node_comes_back_at_its_address_and_others_are_told_when_its_name_is_free() {
    let (_registry, _root, etcd) = grove().await;
    let first = node("a", "root", &etcd);
    let ready = first.printed("node a is ready at ").await;
    let address = ready.trim().trim_start_matches("node a is ready at ").split(": child").next().expect("an address").to_owned();
    first.signal("KILL").await;
    first.finished().await;
    // Its lease has not ended yet.
    let again = Banyan::start(&format!("node run a --parent root --engine fake --listen {address} --etcd {etcd}"));
    failed(&node("a", "root", &etcd).finished().await, 4, &["the name a is taken", &address, "within 10 s"]);
    again.printed(&format!("node a is ready at {address}")).await;
}

#[tokio::test]
async fn a_signal_that_comes_twice_at_once_still_lets_answers_finish() {
    let up = Banyan::up("--nodes 1 --token-time 20ms").await;
    let body = json!({ "model": "fake", "prompt": "[[count 60]]", "max_tokens": 64, "stream": true });
    let mut stream = up.api().await.stream("/v1/completions", &body).await;
    stream.next_text().await;
    // As timeout(1) does: once to the process, once to its group.
    for _ in 0..2 {
        up.signal("TERM").await;
    }
    let rest = stream.rest().await;
    assert_eq!(rest.last().map(|event| event.data.as_str()), Some("[DONE]"));
    let ended = up.finished().await;
    assert_eq!(ended.code, 0, "{}", ended.err);
}

#[tokio::test]
async fn a_missing_parent_is_waited_for() {
    let (_registry, _root, etcd) = grove().await;
    let early = node("b", "a", &etcd);
    early.told("the parent `a` is not there yet").await;
    let parent = node("a", "root", &etcd);
    parent.printed("is ready").await;
    early.printed("node b is ready").await;
    let line = format!("node run c --parent nobody --parent-timeout 300ms --engine fake --listen 127.0.0.1:0 --etcd {etcd}");
    failed(&banyan(&line).await, 6, &["nobody"]);
}

#[tokio::test]
async fn taken_ports_are_named_with_what_to_do() {
    let up = Banyan::up("--nodes 1").await;
    let registry = up.fact("registry").await;
    let registry = registry.trim_start_matches("http://");
    let again = banyan(&format!("up --engine fake --listen 127.0.0.1:0 --registry-listen {registry}")).await;
    failed(&again, 4, &[registry, &format!("`banyan up --etcd http://{registry} --cluster NAME`"), "--registry-listen"]);
    let api = up.api().await.0.to_string();
    let again = banyan(&format!("up --engine fake --listen {api} --registry-listen 127.0.0.1:0")).await;
    failed(&again, 4, &[&api, "`--listen HOST:PORT`"]);
    let taken = banyan(&format!("node run a --parent root --engine fake --listen {api} --etcd http://{registry}")).await;
    failed(&taken, 4, &[&api]);
    let nowhere = banyan("registry serve --listen 203.0.113.1:2379").await;
    failed(&nowhere, 1, &["203.0.113.1:2379", "no such address"]);
}

#[tokio::test]
async fn an_unreachable_registry_is_exit_5_with_what_to_start() {
    let begun = std::time::Instant::now();
    for line in ["node list", "node log a", "why 1234"] {
        // Port 1 is privileged, and nobody listens there.
        let finished = banyan(&format!("{line} --etcd http://127.0.0.1:1")).await;
        failed(&finished, 5, &["127.0.0.1:1", "banyan registry serve"]);
    }
    assert!(begun.elapsed().as_secs() < 20, "three failures took {:?}", begun.elapsed());
    failed(&banyan("node list --etcd not-a-url:x:y").await, 5, &["not-a-url"]);
}

#[tokio::test]
async fn whoever_joins_waits_for_a_registry_that_is_away_and_says_so() {
    let listen = format!("127.0.0.1:{}", banyan_tests::forest::free_port());
    let etcd = format!("http://{listen}");
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {etcd}"));
    let early = format!("127.0.0.1:{}", banyan_tests::forest::free_port());
    let node = Banyan::start(&format!("node run a --parent root --engine fake --listen {early} --etcd {etcd}"));
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    for waiting in [&root, &node, &api] {
        let told = waiting.told("waiting for it").await;
        assert!(told.contains("banyan registry serve") && told.contains(&etcd), "{told}");
    }
    // Who dials a node that can't serve yet is not kept waiting.
    let mut dialled = std::net::TcpStream::connect(early).expect("it listens");
    dialled.set_read_timeout(Some(eventually::PATIENCE)).expect("a time-out can be set");
    let read = std::io::Read::read(&mut dialled, &mut [0; 1]);
    assert!(
        read.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |read| *read == 0),
        "{read:?}"
    );
    let _registry = Banyan::start(&format!("registry serve --listen {listen}"));
    root.printed("node root is ready").await;
    node.printed("node a is ready").await;
    api.printed("the API is ready").await;
}

#[tokio::test]
async fn a_wrong_command_line_is_exit_2() {
    for line in ["node run Not-A-Name --parent root", "node run a --parent b/c", "up --nodes 0", "frobnicate"] {
        failed(&banyan(line).await, 2, &["error:"]);
    }
    failed(&banyan("node run a --parent root --engine fake --listen 0.0.0.0:0").await, 2, &["--advertise"]);
    // Before the registry is asked, and nobody listens there.
    for line in ["node run a --parent a --listen 127.0.0.1:0", "node move a --parent a"] {
        failed(&banyan(&format!("{line} --etcd http://127.0.0.1:1")).await, 2, &["`a` can't be its own parent"]);
    }
    for id in ["chatcmpl-", "root"] {
        failed(&banyan(&format!("why {id} --etcd http://127.0.0.1:1")).await, 2, &[id, "hexadecimal digits"]);
    }
}

#[tokio::test]
async fn weights_that_are_missing_or_damaged_are_told_in_a_line() {
    let (_registry, _root, etcd) = grove().await;
    let folder = tempfile::tempdir().expect("a folder");
    let run = |model: &Path| {
        let line = format!("node run a --parent root --model {} --listen 127.0.0.1:0 --etcd {etcd}", model.display());
        async move { banyan(&line).await }
    };
    failed(&run(&folder.path().join("nowhere")).await, 3, &["nowhere"]);
    failed(&run(folder.path()).await, 3, &["config.json"]);

    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/banyan-tiny");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(file), folder.path().join(file)).expect("the bundled model lies in the repository");
    }
    failed(&run(folder.path()).await, 1, &["model.safetensors"]);
    let weights = fs::read(tiny.join("model.safetensors")).expect("the bundled model lies in the repository");
    fs::write(folder.path().join("model.safetensors"), &weights[..weights.len() / 2]).expect("there is room");
    failed(&run(folder.path()).await, 1, &["model.safetensors", "damaged"]);
    fs::write(folder.path().join("config.json"), "{").expect("there is room");
    failed(&run(folder.path()).await, 1, &["config.json"]);
    // None of them ever had the name.
    let names = banyan(&format!("node list -o name --etcd {etcd}")).await;
    assert_eq!(names.out.trim(), "root");
}

#[tokio::test]
async fn a_killed_process_loses_no_query() {
    let (_registry, _root, etcd) = grove().await;
    let mut nodes = vec![("a", node("a", "root", &etcd)), ("b", node("b", "root", &etcd))];
    for (_, node) in &nodes {
        node.printed("is ready").await;
    }
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;

    let body = json!({ "model": "fake", "prompt": "a tale", "max_tokens": 80, "seed": 11, "ignore_eos": true, "stream": true });
    let undisturbed = joined(&http.stream("/v1/completions", &body).await.rest().await);
    let mut stream = http.stream("/v1/completions", &body).await;
    let first = stream.next_text().await;
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    let why = banyan(&format!("why {id} -o json --etcd {etcd}")).await.json();
    let holder = why["attempts"][0]["holder"].as_str().expect("a holder").to_owned();
    let at = nodes.iter().position(|(name, _)| *name == holder).expect("one of the nodes holds it");
    let (_, killed) = nodes.swap_remove(at);
    killed.signal("KILL").await;

    let mut text = first.text();
    text.push_str(&joined(&stream.rest().await));
    assert_eq!(text, undisturbed);
    let why = banyan(&format!("why {id} -o json --etcd {etcd}")).await.json();
    assert_eq!((&why["state"], &why["attempts"][0]["outcome"]), (&json!("finished"), &json!("lost")), "{why}");
    assert_eq!(why["attempts"][1]["holder"], nodes[0].0, "{why}");
}

#[tokio::test]
async fn real_weights_go_on_elsewhere_with_the_very_same_text() {
    let (_registry, _root, etcd) = grove().await;
    let start = |name: &str| {
        let line = format!("node run {name} --parent root --model banyan-tiny --threads 1 --listen 127.0.0.1:0 --etcd {etcd}");
        Banyan::start(&line)
    };
    let mut nodes = vec![("a", start("a")), ("b", start("b"))];
    for (_, node) in &nodes {
        node.printed("is ready").await;
    }
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;

    // Sampled, so that the random numbers have to go on where they were as well.
    let body = json!({
        "model": "banyan-tiny", "prompt": "Once upon a time", "max_tokens": 450, "temperature": 0.9, "seed": 5,
        "ignore_eos": true, "stream": true,
    });
    let undisturbed = joined(&http.stream("/v1/completions", &body).await.rest().await);
    let mut stream = http.stream("/v1/completions", &body).await;
    let first = stream.next_text().await;
    let holder = first.json()["banyan"]["node"].as_str().expect("who answers").to_owned();
    let at = nodes.iter().position(|(name, _)| *name == holder).expect("one of the nodes holds it");
    nodes.swap_remove(at).1.signal("KILL").await;
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    let mut text = first.text();
    text.push_str(&joined(&stream.rest().await));
    assert_eq!(text, undisturbed);
    let why = banyan(&format!("why {id} -o json --etcd {etcd}")).await.json();
    assert_eq!(why["attempts"].as_array().map(Vec::len), Some(2), "it died in the middle: {why}");
}

#[tokio::test]
async fn a_child_whose_parent_is_killed_hangs_on_elsewhere_and_comes_back() {
    let (_registry, _root, etcd) = grove().await;
    let (a, b) = (node("a", "root", &etcd), node("b", "a", &etcd));
    a.printed("is ready").await;
    b.printed("is ready").await;
    tree(&etcd, "b is below a", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == "a")).await;
    a.signal("KILL").await;
    a.finished().await;
    let nodes = tree(&etcd, "b hangs below the root", |nodes| named(nodes, "b").is_some_and(|b| b["attached"] == "root")).await;
    assert_eq!(named(&nodes, "b").map(|b| &b["parent"]), Some(&json!("a")));
}

#[tokio::test]
async fn the_tree_is_measured_at_every_depth() {
    let report = banyan("bench route --depth 1,2 --concurrency 8 --time 100ms -o json").await.json();
    let measured = report["measured"].as_array().expect("rows");
    let ways: Vec<(u64, &str)> = measured.iter().filter_map(|row| Some((row["depth"].as_u64()?, row["at"].as_str()?))).collect();
    assert_eq!(ways, [(1, "tree"), (1, "api"), (2, "tree"), (2, "api")]);
    for row in measured {
        assert!(row["queries_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
    }
}

#[tokio::test]
async fn the_engine_is_measured_with_the_bundled_model() {
    let measured =
        banyan("bench engine --model banyan-tiny --dtype f32,q8 --batch 1,2 --new 4 --rounds 1 --http -o json").await.json();
    let runs = measured["runs"].as_array().expect("a run for each dtype");
    assert_eq!(runs.iter().map(|run| &run["dtype"]).collect::<Vec<_>>(), ["f32", "q8"], "{measured}");
    let report = &runs[1];
    assert_eq!((&report["model"], &report["decode"][0]["batch"]), (&json!("banyan-tiny"), &json!(1)), "{report}");
    for rate in [&report["decode"][0]["tokens_per_s"], &report["first_token"][0]["ms"], &report["http"]["tokens_per_s"]] {
        assert!(rate.as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    }
}

#[tokio::test]
async fn log_follows_what_a_node_decides() {
    let up = Banyan::up("--nodes 1").await;
    let etcd = up.fact("registry").await;
    let follow = Banyan::start(&format!("node log node-1 --follow -o json --etcd {etcd}"));
    follow.printed("\"name\":\"node-1\"").await;
    up.api().await.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await;
    let read = follow.printed("\"number\":").await;
    for line in read.lines().filter(|line| !line.is_empty()) {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "not one JSON value: {line}");
    }
    follow.signal("INT").await;
    assert_eq!(follow.finished().await.code, 130);
}

#[tokio::test]
async fn settings_stand_in_a_file_behind_flags_and_variables() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("banyan.toml");
    let text = "listen = '127.0.0.1:0'\nregistry_listen = '127.0.0.1:0'\nengine = 'fake'\nnodes = 3\n\
                [aliases]\nfast = ['away', 'fake']\n";
    std::fs::write(&path, text).expect("a write");
    let config = format!("--config {}", path.display());
    let up = Banyan::start(&format!("up --nodes 1 --store memory {config}"));
    up.printed("Ctrl-C stops everything").await;
    let nodes = banyan(&format!("node list -o name --etcd {}", up.fact("registry").await)).await;
    assert_eq!(nodes.out.trim(), "node-1\nroot", "a flag wins");
    let answer = up.api().await.post("/v1/completions", &json!({ "model": "fast", "prompt": "[[count 3]]" })).await;
    assert_eq!((answer.text().as_str(), &answer.json()["model"]), ("1 2 3", &json!("fake")));

    let shown = banyan(&format!("config show --origin {config}")).await.out;
    let of = |setting: &str| {
        let line = shown.lines().find(|line| line.starts_with(setting)).unwrap_or_else(|| panic!("no {setting} in {shown}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("nodes")[1..3], ["3".to_owned(), path.display().to_string()]);
    assert_eq!(of("cluster")[1..3], ["default", "default"]);

    std::fs::write(&path, "nodse = 3\n").expect("a write");
    let refused = banyan(&format!("node list {config}")).await;
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("there is no setting `nodse`: did you mean `nodes`?"), "{refused:?}");
    let missing = banyan("node list --config nowhere.toml").await;
    assert_eq!(missing.code, 2, "{missing:?}");
}

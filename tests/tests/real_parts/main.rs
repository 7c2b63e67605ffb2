//! With parts that others made: etcd, PyPI's and npm's clients, schemathesis, Chromium, axe, TypeScript. `./test --all` installs them
//! and runs this; `./test` leaves suites out whose names begin with `real_`.

mod deploy;
mod etcd_tls;
mod nginx;
mod postgres;
mod prometheus;

use std::path::Path;

use banyan_tests::{
    Banyan, Finished,
    etcds::Etcds,
    eventually,
    process::banyan,
    real::{etcdctl, node, packages, python, schemathesis},
};
use serde_json::json;
use tokio::sync::Mutex;

/// A browser at a time: one alone keeps two cores busy, and its clocks are a person's.
static BROWSER: Mutex<()> = Mutex::const_new(());

/// Waits until no node computes for anybody.
async fn is_idle(up: &Banyan) {
    let etcd = up.fact("registry").await;
    eventually("nothing runs any more", || async {
        let nodes = banyan(&format!("node tree -o json --etcd {etcd}")).await.json();
        let idle = nodes.as_array()?.iter().all(|node| node["running"] == 0 && node["live"] == 0);
        idle.then_some(())
    })
    .await;
}

fn passed(finished: &Finished) {
    assert_eq!(finished.code, 0, "{}\n{}", finished.out, finished.err);
}

#[tokio::test]
async fn three_processes_and_an_api_make_a_tree_over_a_real_etcd() {
    let etcd = Etcds::start(1).await;
    let url = etcd.urls();
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {url}"));
    root.printed("is ready").await;
    let start = |name: &str, parent: &str| {
        Banyan::start(&format!(
            "node run {name} --parent {parent} --model banyan-tiny --threads 1 --listen 127.0.0.1:0 --etcd {url}"
        ))
    };
    let (a, b) = (start("a", "root"), start("b", "a"));
    a.printed("is ready").await;
    b.printed("is ready").await;
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {url}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;
    let body = json!({ "model": "banyan-tiny", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0 });
    let text = http.post("/v1/completions", &body).await.text();
    assert!(text.split_whitespace().count() > 4, "{text:?}");

    let keys = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/banyan/default/"]).await;
    for key in ["nodes/root", "nodes/a", "nodes/b", "roots/main"] {
        assert!(keys.out.contains(&format!("/banyan/default/{key}\n")), "{key} is missing in: {}", keys.out);
    }
    // A lost lease is a hint, never a death: the node registers again, and serves meanwhile.
    let removed = etcd.etcdctl(&["del", "/banyan/default/nodes/b"]).await;
    assert_eq!(removed.out.trim(), "1", "{removed:?}");
    assert!(http.post("/v1/completions", &body).await.status.is_success());
    eventually("b registers again", || async {
        banyan(&format!("node list -o name --etcd {url}")).await.out.lines().any(|name| name == "b").then_some(())
    })
    .await;

    for node in [b, a, root] {
        node.signal("TERM").await;
        assert_eq!(node.finished().await.code, 0);
    }
    let left = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/banyan/"]).await;
    assert!(!left.out.contains("/banyan/default/nodes/"), "{}", left.out);
}

#[tokio::test]
async fn etcdctl_reads_the_embedded_registry() {
    let up = Banyan::up("--nodes 1").await;
    let url = up.fact("registry").await;
    let read = etcdctl(&url, &["get", "/banyan/default/nodes/node-1", "--print-value-only"]).await;
    assert!(read.out.contains("\"parent\":\"root\""), "{read:?}");
    let put = etcdctl(&url, &["put", "hello", "world"]).await;
    assert_eq!(put.out.trim(), "OK", "{put:?}");
    let health = etcdctl(&url, &["endpoint", "status"]).await;
    passed(&health);
}

#[tokio::test]
async fn clients_of_pypi_and_npm_complete_stream_embed_and_raise_the_right_errors() {
    let up = Banyan::up("--nodes 2 --token-time 5ms").await;
    let base = up.fact("API").await;
    passed(&python("openai_client.py", &[&base]).await);
    passed(&python("langchain_client.py", &[&base]).await);
    passed(&node("openai_client.mjs", &[&base]).await);
    // Who went away in the middle left nothing behind.
    is_idle(&up).await;
}

#[tokio::test]
async fn clients_wait_when_they_are_told_and_find_what_they_asked_for_before() {
    // Two at once, a tenth of a second each; two wait at the node and eight at the root.
    let up = Banyan::up("--nodes 1 --batch 2 --lane-entries 17 --token-time 5ms").await;
    let base = up.fact("API").await;
    passed(&python("openai_patience.py", &[&base]).await);
    is_idle(&up).await;
}

#[tokio::test]
async fn nothing_that_the_document_allows_or_forbids_is_answered_otherwise_than_documented() {
    let up = Banyan::up("--nodes 2 --token-time 1ms").await;
    let base = up.fact("API").await;
    let url = base.replace("/v1", "/openapi.json");
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                  response_schema_conformance,negative_data_rejection";
    passed(
        &schemathesis(
            &url,
            &[
                "--checks",
                checks,
                "--max-examples",
                "40",
                "--seed",
                "7",
                "--phases",
                "coverage,fuzzing",
                "--exclude-path",
                "/v1/tree/events",
            ],
        )
        .await,
    );
}

#[tokio::test]
async fn the_openai_client_takes_a_batch_through_and_keeps_to_its_keys_limits() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let key = banyan(&format!("key create --name client --rpm 6 {store}")).await;
    let up = Banyan::up(&format!("--nodes 1 {store}")).await;
    passed(&python("openai_batches.py", &[&up.fact("API").await, key.out.trim()]).await);
}

#[tokio::test]
async fn every_feature_of_the_page_does_what_a_person_expects() {
    let _alone = BROWSER.lock().await;
    passed(&python("page_features.py", &[]).await);
}

#[tokio::test]
async fn a_hostile_models_words_are_shown_and_nothing_of_them_runs() {
    let up = Banyan::up("--nodes 1 --token-time 1ms").await;
    let page = up.fact("page").await;
    let _alone = BROWSER.lock().await;
    passed(&python("page_hostile.py", &[page.trim_end_matches('/')]).await);
}

#[tokio::test]
async fn what_is_said_on_the_page_is_kept_by_the_api_for_every_browser() {
    let up = Banyan::up("--nodes 2 --token-time 40ms").await;
    let page = up.fact("page").await;
    let _alone = BROWSER.lock().await;
    passed(&python("page_histories.py", &[&page]).await);
}

#[tokio::test]
async fn the_page_is_read_by_everyone_in_every_size_theme_and_language() {
    let axe = packages().join("node_modules/axe-core/axe.min.js");
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artifacts/page");
    let up = Banyan::up("--nodes 2 --token-time 1ms").await;
    let page = up.fact("page").await;
    let _alone = BROWSER.lock().await;
    passed(&python("page_looks.py", &[axe.to_str().unwrap(), shots.to_str().unwrap(), &page]).await);
}

#[tokio::test]
async fn the_trees_page_shows_made_up_trees_of_every_size_to_everyone() {
    let _alone = BROWSER.lock().await;
    let (axe, shots) = axe_and_shots();
    passed(&python("page_tree.py", &[&axe, &shots]).await);
}

#[tokio::test]
async fn the_trees_page_shows_processes_that_work_leave_and_are_killed() {
    let _alone = BROWSER.lock().await;
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let start = |line: &str| Banyan::start(&format!("node run {line} --listen 127.0.0.1:0 --etcd {etcd}"));
    let root = start("root");
    root.printed("is ready").await;
    let mut nodes = Vec::new();
    for (name, parent) in [("a", "root"), ("b", "a"), ("c", "root")] {
        let node = start(&format!("{name} --parent {parent} --engine fake --batch 1 --token-time 30ms"));
        node.printed("is ready").await;
        nodes.push(node);
    }
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;
    let (axe, shots) = axe_and_shots();
    let victim = nodes[1].pid().to_string();
    passed(&python("page_tree.py", &[&axe, &shots, "real", &format!("http://{}", http.0), &victim]).await);
}

fn axe_and_shots() -> (String, String) {
    let axe = packages().join("node_modules/axe-core/axe.min.js");
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artifacts/page");
    (axe.display().to_string(), shots.display().to_string())
}

#[tokio::test]
async fn the_pages_layout_is_tidy() {
    passed(&node("tree_layout.mjs", &[]).await);
}

#[tokio::test]
async fn the_pages_types_are_right() {
    let compiler = packages().join("node_modules/typescript/bin/tsc");
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/node/tsconfig.json");
    passed(&node(compiler.to_str().unwrap(), &["-p", project]).await);
}

#[tokio::test]
async fn a_person_asks_on_the_page_sees_tokens_appear_and_presses_stop() {
    let _alone = BROWSER.lock().await;
    let up = Banyan::up("--nodes 2 --token-time 60ms").await;
    let page = up.fact("page").await;
    passed(&python("page.py", &[&page]).await);
    // Stopping freed the node, not only the page.
    is_idle(&up).await;
}

//! This version with the one before it in one tree, in both directions, under load and with nodes that die and leave.
//! `./test --long` builds the one before, and says where it is.

use std::time::Duration;

use banyan_tests::{
    Forest,
    clients::Clients,
    forest::{Seed, node, root},
    history::check,
};

/// What runs the version before: the first word is the present binary, in whose place the other one is run.
fn words() -> [String; 4] {
    let binary = std::env::var("BANYAN_TEST_PREVIOUS").expect("`./test --long` builds the version before, and says where it is");
    ["sh".to_owned(), "-c".to_owned(), format!("shift; exec {binary} \"$@\""), "sh".to_owned()]
}

/// A node of the version before.
fn before(seed: Seed) -> Seed {
    seed.wrapped(&words().each_ref().map(String::as_str))
}

/// `r` is the root, `a` below it, `b` below that, `c` below that, and `d` below the root; `api` runs the API.
async fn mixed(r: Seed, nodes: [Seed; 4], api: &[&str]) {
    let mut forest = Forest::bare().await;
    forest.plant([r]).await;
    for node in nodes {
        forest.plant([node]).await;
    }
    let api = forest.api_by(api).await;
    forest.remember().await;
    let clients = Clients::start(api, 31, 6, Duration::from_millis(20)).await;
    for name in ["c", "b", "a", "d"] {
        let left = forest.end(name).await;
        assert_eq!(left.code, 0, "{name}: {}", left.err);
        forest.start_again(name);
        forest.ready(name).await;
    }
    for name in ["b", "c"] {
        forest.kill(name).await;
        forest.start_again(name);
        forest.ready(name).await;
    }
    let verdict = check(&clients.finish().await, Duration::from_secs(120));
    assert!(verdict.complaints.is_empty(), "{verdict:#?}");
    forest.whole().await;
}

#[tokio::test]
async fn an_older_root_has_newer_nodes_and_a_newer_api_with_older_nodes_between() {
    mixed(before(root("root")), [node("a", "root"), before(node("b", "a")), node("c", "b"), before(node("d", "root"))], &[])
        .await;
}

#[tokio::test]
async fn a_newer_root_has_older_nodes_and_an_older_api_with_newer_nodes_between() {
    let api = words();
    let nodes = [before(node("a", "root")), node("b", "a"), before(node("c", "b")), node("d", "root")];
    mixed(root("root"), nodes, &api.each_ref().map(String::as_str)).await;
}

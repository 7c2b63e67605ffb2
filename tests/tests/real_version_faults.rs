//! This version with the one before it in one tree, in both directions, under load and with nodes that die and leave.
//! `./test --long` builds the one before, and says where it is.

use std::time::Duration;

use banyan_tests::{
    Forest,
    clients::Clients,
    forest::{Seed, node, root},
    history::check,
};

/// A node of the version before.
fn before(seed: Seed) -> Seed {
    let binary = std::env::var("BANYAN_TEST_PREVIOUS").expect("`./test --long` builds the version before, and says where it is");
    // The first word is the present binary, in whose place the other one is run.
    seed.wrapped(&["sh", "-c", &format!("shift; exec {binary} \"$@\""), "sh"])
}

/// `r` is the root, `a` below it, `b` below that, `c` below that, and `d` below the root.
async fn mixed(r: Seed, nodes: [Seed; 4]) {
    let mut forest = Forest::bare().await;
    forest.plant([r]).await;
    for node in nodes {
        forest.plant([node]).await;
    }
    let api = forest.api().await;
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
async fn an_older_root_has_newer_nodes_with_an_older_one_between_them() {
    mixed(before(root("root")), [node("a", "root"), before(node("b", "a")), node("c", "b"), before(node("d", "root"))]).await;
}

#[tokio::test]
async fn a_newer_root_has_older_nodes_with_a_newer_one_between_them() {
    mixed(root("root"), [before(node("a", "root")), node("b", "a"), before(node("c", "b")), node("d", "root")]).await;
}

//! Many who want one name, and parents that are missing or below their children.

use banyan_tests::{
    Forest, eventually,
    forest::node,
    process::{Banyan, Finished},
};
use futures::future::join_all;

fn outcome(finished: &Finished) -> (i32, String) {
    (finished.code, format!("{}{}", finished.out, finished.err))
}

#[tokio::test]
async fn of_fifty_that_start_under_one_name_one_wins_and_the_others_name_it() {
    let mut forest = Forest::new().await;
    let start = || {
        let line = format!(
            "node run a --parent root --engine fake --listen 127.0.0.1:0 --etcd {} --cluster {}",
            forest.etcd(),
            forest.cluster()
        );
        Banyan::start(&line)
    };
    let mut racers: Vec<Banyan> = (0..50).map(|_| start()).collect();
    let winner = eventually("forty-nine have lost", || {
        let running: Vec<bool> = racers.iter_mut().map(Banyan::runs).collect();
        let one = (running.iter().filter(|runs| **runs).count() == 1).then(|| running.iter().position(|runs| *runs));
        async move { one.flatten() }
    })
    .await;
    let winner = racers.swap_remove(winner);
    let ready = winner.printed("node a is ready at ").await;
    let address = ready.trim().trim_start_matches("node a is ready at ").split(": child").next().expect("an address");
    for lost in join_all(racers.into_iter().map(Banyan::finished)).await {
        let (code, told) = outcome(&lost);
        assert!(code == 4 && told.contains(address), "{lost:?}");
    }
    winner.signal("TERM").await;
    assert_eq!(winner.finished().await.code, 0);
    forest.plant([node("a", "root")]).await;
    forest.whole().await;
}

#[tokio::test]
async fn of_two_moves_that_would_close_a_circle_together_one_is_refused() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root")]).await;
    for _ in 0..5 {
        let (one, other) = tokio::join!(forest.banyan("node move a --parent b"), forest.banyan("node move b --parent a"));
        let codes = [one.code, other.code];
        assert!(codes == [0, 4] || codes == [4, 0], "{one:?} {other:?}");
        let moved = if one.code == 0 { "a" } else { "b" };
        forest.until(moved, "it hangs below the other", |moved| moved.attached != "root" && !moved.attached.is_empty()).await;
        let back = forest.banyan(&format!("node move {moved} --parent root")).await;
        assert_eq!(back.code, 0, "{back:?}");
        forest.whole().await;
    }
}

#[tokio::test]
async fn a_whole_branch_that_starts_before_its_root_waits_for_it() {
    let mut forest = Forest::bare().await;
    for (name, parent) in [("c", "b"), ("b", "a"), ("a", "root")] {
        forest.begin(node(name, parent)).await;
        forest.process(name).told(&format!("the parent `{parent}` is not there yet")).await;
    }
    forest.plant([banyan_tests::forest::root("root")]).await;
    for name in ["a", "b", "c"] {
        forest.ready(name).await;
    }
    forest.whole().await;
}

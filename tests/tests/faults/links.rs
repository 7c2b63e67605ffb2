//! Networks that delay, narrow, hold back and cut.

use std::time::{Duration, Instant};

use banyan_tests::{
    Forest,
    clients::{Clients, Wish, count_to},
    eventually,
    forest::{node, root},
    history::Story,
    proxy::Weather,
    query::{self, Ended},
};
use futures::future::join_all;

use crate::{ORPHANED_MAX, assert_told_well};

#[tokio::test]
async fn a_node_cut_off_from_its_parent_attaches_elsewhere_and_comes_back() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").proxied(), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 21, 6, Duration::from_millis(20)).await;
    for harm in ["held", "forsaken", "cut"] {
        let begun = Instant::now();
        match harm {
            "held" => forest.proxy("a").set(Weather::partition()),
            "forsaken" => {
                forest.proxy("a").forsake();
                forest.proxy("a").set(Weather::refusing());
            }
            _ => {
                forest.proxy("a").set(Weather::refusing());
                forest.proxy("a").cut();
            }
        }
        forest.until("b", "it hangs below the root", |b| b.attached == "root" && b.state != "detached").await;
        let took = begun.elapsed();
        assert!(took < ORPHANED_MAX, "{harm}: it needed {took:?}");
        forest.proxy("a").clear();
        forest.until("b", "it is back", |b| b.attached == "a").await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn a_node_cut_off_from_the_registry_serves_on_and_registers_again() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").registry_proxied(), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let first = forest.until("a", "it is registered", |a| a.registered).await;
    let clients = Clients::start(api, 22, 4, Duration::from_millis(20)).await;
    forest.registry_proxy("a").set(Weather::partition());
    let gone = || async { (!forest.banyan("node list -o name").await.out.lines().any(|name| name == "a")).then_some(()) };
    eventually("its key is gone", gone).await;
    let a = forest.until("a", "it says that it is not registered", |a| !a.registered).await;
    assert_eq!(a.attached, "root");
    // It serves meanwhile: `b` can't take all of this.
    let stories = join_all((0..8).map(|number| async move { Wish::count(20).ask(api, 1_000_000 + number).await })).await;
    assert_told_well(&stories);
    forest.registry_proxy("a").clear();
    forest.until("a", "it is registered again", |a| a.registered && a.incarnation >= first.incarnation).await;
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn lost_acknowledgements_repeat_nothing() {
    let mut forest = Forest::bare().await;
    forest.plant([root("root").proxied()]).await;
    forest.plant([node("a", "root"), node("b", "root")]).await;
    forest.remember().await;
    for seed in 0..2 {
        // Past the proxy: only the nodes are to be deaf.
        let address = forest.address("root");
        let mut asked = join_all((0..4).map(|_| query::ask(&address, "[[count 400]]", 500, seed))).await;
        for answer in &mut asked {
            answer.read_tokens(20).await;
        }
        // What nodes deliver arrives, and they hear nothing of it until they give up.
        forest.proxy("root").set(Weather::deaf());
        forest.until("a", "it has lost its parent", |a| a.attached.is_empty()).await;
        forest.proxy("root").clear();
        for mut answer in asked {
            // Reading checks that no position repeats or is missing.
            let end = answer.end().await;
            assert!(matches!(end, Ended::Finished(_)), "{end:?}");
            assert_eq!(answer.text, count_to(400));
        }
        forest.whole().await;
    }
}

#[tokio::test]
async fn five_hundred_cancels_at_once_leave_the_links_alone() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").flags("--engine fake --token-time 5ms --batch 256"), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let undisturbed = tokio::spawn(async move { Wish::count(300).ask(api, 0).await });
    let crowd: Vec<_> = (0..500).map(|_| tokio::spawn(async move { Wish::count(3000).hold(api).await })).collect();
    forest.until("root", "the whole crowd is live", |root| root.live >= 501).await;
    for client in crowd {
        client.abort();
    }
    assert_told_well(&[undisturbed.await.expect("no client panics")]);
    forest.whole().await;
}

#[tokio::test]
async fn a_link_that_is_slow_and_narrow_loses_nothing() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").proxied(), node("b", "a"), node("c", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 23, 8, Duration::from_millis(10)).await;
    let links = [50, 200, 400].map(|ms| Weather::delay(Duration::from_millis(ms))).into_iter().chain([Weather::throttle(4096)]);
    for weather in links {
        forest.proxy("a").set(weather);
        let before = clients.asked();
        eventually("the clients go on", || async { (clients.asked() > before + 16).then_some(()) }).await;
    }
    forest.proxy("a").clear();
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn a_slow_child_gets_less_and_the_log_says_why() {
    let mut forest = Forest::new().await;
    // Both say that they are as fast; one of them has a fifth of the time, as a `cpu.max` of 20 % gives it.
    forest.plant([node("quick", "root"), node("slow", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 24, 12, Duration::ZERO).await;
    let slow = forest.process("slow");
    while clients.asked() < 150 {
        slow.signal("STOP").await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        slow.signal("CONT").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = forest.banyan("node log root --last 2000").await;
    let stories = clients.finish().await;
    let answered = |name: &str| {
        let by = |story: &&Story| story.seen.iter().rev().find_map(|(_, seen)| seen.node()) == Some(name);
        stories.iter().filter(by).count()
    };
    assert!(answered("slow") * 3 < answered("quick") * 2, "quick: {}, slow: {}", answered("quick"), answered("slow"));
    assert!(log.out.contains("slow is slow and gets one turn in "), "{}", log.out);
    assert_told_well(&stories);
    forest.whole().await;
}

//! etcd that loses members, all of them, leases, or its history.

use std::time::Duration;

use banyan_tests::{
    Forest,
    clients::{Clients, Wish},
    etcds::Etcds,
    eventually,
    forest::{node, root},
};
use tokio::time::sleep;

use crate::{assert_told_well, long};

async fn forest(etcds: &Etcds) -> Forest {
    let mut forest = Forest::over(&etcds.urls(), "faults").await;
    forest.plant([root("root")]).await;
    forest.plant([node("a", "root"), node("b", "a")]).await;
    forest
}

/// Waits until the clients have asked some more.
async fn at_work(clients: &Clients) {
    let before = clients.asked();
    eventually("the clients are at work", || async { (clients.asked() > before + 12).then_some(()) }).await;
}

#[tokio::test]
async fn the_death_of_any_one_member_is_invisible() {
    let mut etcds = Etcds::start(3).await;
    let mut forest = forest(&etcds).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 41, 4, Duration::from_millis(20)).await;
    for member in 0..etcds.count() {
        etcds.kill_member(member).await;
        at_work(&clients).await;
        // Who comes now comes all the same.
        forest.plant([node("late", "root")]).await;
        assert_eq!(forest.end("late").await.code, 0);
        etcds.start_member(member);
        etcds.healthy().await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn an_outage_of_all_members_fails_no_query_and_ends_no_process() {
    // Longer than the leases last.
    let outage = if long().is_some() { Duration::from_secs(60) } else { Duration::from_secs(14) };
    let mut etcds = Etcds::start(3).await;
    let mut forest = forest(&etcds).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 42, 4, Duration::from_millis(20)).await;
    for killed in [false, true] {
        for member in 0..etcds.count() {
            match killed {
                true => etcds.kill_member(member).await,
                false => etcds.signal_member(member, "STOP").await,
            }
        }
        sleep(outage).await;
        at_work(&clients).await;
        for name in ["root", "a", "b"] {
            forest.until(name, "it goes on", |node| node.state != "detached").await;
        }
        // Who comes during the outage waits, or is told so; nobody is lost by it.
        for member in 0..etcds.count() {
            match killed {
                true => etcds.start_member(member),
                false => etcds.signal_member(member, "CONT").await,
            }
        }
        etcds.healthy().await;
        for name in ["root", "a", "b"] {
            forest.until(name, "it is registered", |node| node.registered).await;
        }
    }
    let stories = clients.finish().await;
    assert_told_well(&stories);
    // Nothing was even sent again.
    for story in stories.iter().rev().take(40) {
        if let Some(id) = &story.id {
            let why = forest.why(id).await;
            assert_eq!(why["attempts"].as_array().map(Vec::len), Some(1), "{why}");
        }
    }
    forest.whole().await;
}

#[tokio::test]
async fn a_lease_that_is_revoked_ends_nobody() {
    let etcds = Etcds::start(1).await;
    let mut forest = forest(&etcds).await;
    let api = forest.api().await;
    forest.remember().await;
    let epoch = forest.until("root", "it reigns", |root| root.epoch > 0).await.epoch;
    let clients = Clients::start(api, 43, 4, Duration::from_millis(20)).await;
    for name in ["a", "b", "root"] {
        let before = forest.until(name, "it is registered", |node| node.registered).await;
        assert!(etcds.revoke_lease_of(&format!("/banyan/faults/nodes/{name}")).await);
        eventually("it registers again", || async {
            let members = forest.banyan("node list -o json").await.json();
            let member = members.as_array()?.iter().find(|member| member["name"] == name)?.clone();
            (member["incarnation"].as_u64()? > before.incarnation).then_some(())
        })
        .await;
        at_work(&clients).await;
    }
    // A key that is made again is a new reign, of the same root: nothing that was under way is lost with the old one.
    let root = forest.until("root", "it reigns on", |root| root.registered && root.epoch > 0).await;
    assert!(root.epoch >= epoch, "{} after {epoch}", root.epoch);
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn a_watch_whose_history_is_gone_lists_everything_again() {
    let etcds = Etcds::start(1).await;
    let mut forest = Forest::over(&etcds.urls(), "faults").await;
    forest.plant([root("root")]).await;
    forest.plant([node("a", "root"), node("b", "a").registry_proxied()]).await;
    let api = forest.api().await;
    forest.remember().await;
    // While `b` hears nothing of it, its parent moves to another address, and what was between is forgotten.
    forest.registry_proxy("b").set(banyan_tests::proxy::Weather::refusing());
    forest.registry_proxy("b").cut();
    assert_eq!(forest.end("a").await.code, 0);
    forest.until("b", "it hangs below the root", |b| b.attached == "root").await;
    forest.plant([node("a", "root")]).await;
    assert!(etcds.compact().await);
    forest.registry_proxy("b").clear();
    forest.until("b", "it found its parent", |b| b.attached == "a" && b.registered).await;
    assert_told_well(&[Wish::count(20).ask(api, 0).await]);
    forest.whole().await;
}

#[tokio::test]
async fn a_root_is_replaced_while_any_one_member_is_dead() {
    let mut etcds = Etcds::start(3).await;
    let mut forest = Forest::over(&etcds.urls(), "faults").await;
    forest.plant([root("root").flags("--standby")]).await;
    forest.until("root", "it reigns", |root| root.state == "ready").await;
    forest.plant([root("spare").flags("--standby")]).await;
    forest.plant([node("a", "root"), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 45, 4, Duration::from_millis(20)).await;
    let (mut reigns, mut waits) = ("root", "spare");
    for (member, harm) in ["killed", "stopped", "told to end"].into_iter().enumerate() {
        etcds.kill_member(member).await;
        at_work(&clients).await;
        match harm {
            "killed" => forest.kill(reigns).await,
            "stopped" => forest.pause(reigns).await,
            _ => assert_eq!(forest.end(reigns).await.code, 0),
        }
        forest.until(waits, "it reigns", |root| root.state == "ready").await;
        at_work(&clients).await;
        match harm {
            "stopped" => forest.resume(reigns).await,
            _ => forest.start_again(reigns),
        }
        forest.until(reigns, "it waits for its turn", |root| root.state == "standby" && root.registered).await;
        (reigns, waits) = (waits, reigns);
        etcds.start_member(member);
        etcds.healthy().await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

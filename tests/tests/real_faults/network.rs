//! Partitions as the kernel makes them: a node in a network namespace of its own, with a wire for each of its peers. Needs root.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use banyan_tests::{
    Forest,
    clients::Clients,
    etcds::Etcds,
    eventually,
    forest::{node, root},
};

use crate::{ORPHANED_MAX, assert_told_well};

fn ip(words: &str) {
    let ran = Command::new("ip").args(words.split_whitespace()).output();
    let ran = ran.unwrap_or_else(|error| panic!("failed to run ip: {error}; `./test --all` installs the package iproute2"));
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "ip {words}: {told}; network namespaces need root: run ./test --all as root");
}

/// A network namespace with wires to this one. Taken down when dropped.
struct Island {
    name: String,
    /// The third number of its addresses, and two more.
    network: u8,
}

impl Island {
    fn new() -> Island {
        let number = std::process::id();
        let island = Island { name: format!("banyan-{number}"), network: (number % 80) as u8 * 3 };
        ip(&format!("netns add {}", island.name));
        ip(&format!("-n {} link set lo up", island.name));
        for wire in 0..3 {
            let (near, far) = (island.near_end(wire), island.far_end(wire));
            ip(&format!("link add {near} type veth peer name {far} netns {}", island.name));
            ip(&format!("address add {}/30 dev {near}", island.near(wire)));
            ip(&format!("link set {near} up"));
            ip(&format!("-n {} address add {}/30 dev {far}", island.name, island.far(wire)));
            ip(&format!("-n {} link set {far} up", island.name));
        }
        island
    }

    fn near_end(&self, wire: u8) -> String {
        format!("bn{}n{wire}", self.network)
    }

    fn far_end(&self, wire: u8) -> String {
        format!("bn{}f{wire}", self.network)
    }

    /// This side's address on a wire.
    fn near(&self, wire: u8) -> String {
        format!("10.213.{}.1", self.network + wire)
    }

    /// The island's address on a wire.
    fn far(&self, wire: u8) -> String {
        format!("10.213.{}.2", self.network + wire)
    }

    /// Takes a wire away, or gives it back.
    fn wire(&self, wire: u8, up: bool) {
        ip(&format!("-n {} link set {} {}", self.name, self.far_end(wire), if up { "up" } else { "down" }));
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // Its wires go with it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

const TO_PARENT: u8 = 0;
const TO_ROOT: u8 = 1;
const TO_REGISTRY: u8 = 2;

#[tokio::test]
async fn a_node_cut_off_from_one_peer_keeps_the_others() {
    let island = Island::new();
    let etcds = Etcds::start(1).await;
    let mut forest = Forest::over(&etcds.urls(), "faults").await;
    forest.plant([root("root").host(&island.near(TO_ROOT))]).await;
    let registry = format!("http://{}:{}", island.near(TO_REGISTRY), etcds.client_port(0));
    let far = node("far", "near").host(&island.far(TO_PARENT)).registry(&registry);
    forest
        .plant([
            node("near", "root").host(&island.near(TO_PARENT)),
            node("beside", "root"),
            far.wrapped(&["ip", "netns", "exec", &island.name]),
        ])
        .await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 61, 6, Duration::from_millis(20)).await;
    let tree = || async { forest.status("root", "far").await };

    // Its parent: it attaches to the root, and comes back.
    island.wire(TO_PARENT, false);
    let begun = Instant::now();
    eventually("it hangs below the root", || async { tree().await.filter(|far| far.attached == "root") }).await;
    assert!(begun.elapsed() < ORPHANED_MAX, "it needed {:?}", begun.elapsed());
    island.wire(TO_PARENT, true);
    eventually("it is back", || async { tree().await.filter(|far| far.attached == "near") }).await;

    // The root, and nobody else: its answers go over its parent.
    island.wire(TO_ROOT, false);
    eventually("it delivers through its parent", || async { tree().await.filter(|far| far.delivers_through == "near") }).await;
    let before = tree().await.map_or(0, |far| far.tokens);
    eventually("it still generates", || async { tree().await.filter(|far| far.tokens > before) }).await;
    island.wire(TO_ROOT, true);
    let straight = || async { tree().await.filter(|far| far.delivers_through.is_empty() && far.state != "detached") };
    eventually("it delivers straight again", straight).await;

    // The registry: it serves on, and says so.
    island.wire(TO_REGISTRY, false);
    eventually("it is unregistered and serves", || async { tree().await.filter(|far| !far.registered) }).await;
    let before = tree().await.map_or(0, |far| far.tokens);
    eventually("it still generates", || async { tree().await.filter(|far| far.tokens > before) }).await;
    island.wire(TO_REGISTRY, true);
    eventually("it is registered again", || async { tree().await.filter(|far| far.registered) }).await;

    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

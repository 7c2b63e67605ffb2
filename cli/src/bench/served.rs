//! One node behind a root and an API in this process, for a benchmark over HTTP.

use std::net::SocketAddr;

use banyan_etcd::Registry;
use banyan_node::Config;

use crate::{
    bench::testbed::loopback,
    exit::Failure,
    fleet::{self, Fleet},
};

/// A running tree of one node.
pub(crate) struct Served {
    fleet: Fleet,
    pub(crate) api: SocketAddr,
}

impl Served {
    pub(crate) async fn start(engine: fleet::Engine) -> Result<Served, Failure> {
        let mut fleet = Fleet::default();
        match fill(&mut fleet, engine).await {
            Ok(api) => Ok(Served { fleet, api }),
            Err(failure) => {
                fleet.stop().await;
                Err(failure)
            }
        }
    }

    pub(crate) async fn stop(self) {
        self.fleet.stop().await;
    }
}

async fn fill(fleet: &mut Fleet, engine: fleet::Engine) -> Result<SocketAddr, Failure> {
    let etcd = fleet.start_registry(loopback().await?).await?.address();
    let cluster = "bench".parse().expect("a valid name");
    let registry = Registry::connect(banyan_etcd::Config::new(vec![format!("http://{etcd}")], cluster)).await?;
    let (root, node) = ("root".parse().expect("a valid name"), "node-1".parse().expect("a valid name"));
    fleet.start_node(Config::root(Clone::clone(&root)), registry.clone(), None, loopback().await?).await?;
    fleet.start_node(Config::child(node, root), registry.clone(), Some(engine), loopback().await?).await?;
    fleet.ready().await;
    Ok(fleet.start_api(banyan_api::Config::default(), registry, loopback().await?).await?.address())
}

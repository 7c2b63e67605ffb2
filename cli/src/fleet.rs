//! The parts that one process runs, and their end: the API first, then children before their parents, the registry last.

use std::time::Duration;

use banyan_api::Api;
use banyan_etcd::{Registry, embedded::Server};
use banyan_node::{Config, Node};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::{exit::Failure, observe::Observed, output};

/// A parent that lives answers at once; a person who waits longer wants to know for what.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whatever of a tree runs in this process.
#[derive(Default)]
pub(crate) struct Fleet {
    registry: Option<Server>,
    root: Option<Node>,
    nodes: Vec<Node>,
    api: Option<Api>,
    /// Of all of them.
    pub(crate) observed: Observed,
}

/// An engine and what it has to say.
pub(crate) type Engine = (banyan_engine::Engine, mpsc::Receiver<banyan_engine::Step>);

impl Fleet {
    pub(crate) async fn start_registry(&mut self, listener: TcpListener) -> Result<&Server, Failure> {
        let server = Server::start(listener, None).await.map_err(anyhow::Error::new)?;
        Ok(self.registry.insert(server))
    }

    pub(crate) async fn start_node(
        &mut self,
        config: Config,
        registry: Registry,
        engine: Option<Engine>,
        listener: TcpListener,
    ) -> Result<&Node, Failure> {
        let root = config.parent.is_none();
        let config = Config { metrics: self.observed.metrics.clone(), tracer: self.observed.tracer.clone(), ..config };
        let node = Node::start(config, registry, engine, listener).await?;
        Ok(if root {
            self.root.insert(node)
        } else {
            self.nodes.push(node);
            self.nodes.last().expect("a node was pushed in the line above")
        })
    }

    pub(crate) async fn start_api(
        &mut self,
        config: banyan_api::Config,
        registry: Registry,
        listener: TcpListener,
    ) -> Result<&Api, Failure> {
        let config =
            banyan_api::Config { metrics: self.observed.metrics.clone(), tracer: self.observed.tracer.clone(), ..config };
        let api = Api::start(config, registry, listener).await?;
        Ok(self.api.insert(api))
    }

    /// Waits until every node has its way to the root.
    pub(crate) async fn ready(&self) {
        let all = join_all(self.nodes.iter().map(Node::ready));
        tokio::pin!(all);
        if timeout(PATIENCE, &mut all).await.is_err() {
            output::note(
                "registered, but the parent does not answer yet: see that its process runs and can be reached from here",
            );
            all.await;
        }
    }

    /// Ends when every node was told to leave and has done so, or with the reason why a part died by itself.
    pub(crate) async fn ended(&mut self) -> Result<(), Failure> {
        let mut ends: FuturesUnordered<_> = self.root.iter_mut().chain(&mut self.nodes).map(Node::ended).collect();
        while let Some(ended) = ends.next().await {
            ended.map_err(anyhow::Error::new)?;
        }
        Ok(())
    }

    /// Lets every node finish what it runs, and hand over what has not ended by the deadline.
    pub(crate) async fn drain(&self, deadline: Duration) {
        join_all(self.root.iter().chain(&self.nodes).map(|node| node.drain(deadline))).await;
    }

    /// Ends everything that was started; whoever has a name gives it back.
    pub(crate) async fn stop(self) {
        if let Some(api) = self.api {
            api.stop().await;
        }
        join_all(self.nodes.into_iter().map(Node::stop)).await;
        if let Some(root) = self.root {
            root.stop().await;
        }
        if let Some(registry) = self.registry {
            registry.stop().await;
        }
        self.observed.finish().await;
    }
}

//! A whole tree in this process, on ports that the system chose: registry, root, nodes with engines without weights or with a
//! model's, API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use banyan_api::{Aliases, Api};
use banyan_engine::{Engine, Model, Step, fake};
use banyan_etcd::{Policy, Registry, embedded::Server};
use banyan_node::{Config, LaneLimits, Node, Routing};
use banyan_proto::{NodeName, PROVIDER_PREFIX, v1::NodeStatus};
use tokio::{net::TcpListener, sync::mpsc::Receiver};

use crate::{eventually::eventually, gate::Gate, http::Http, query, upstream};

/// A tree to be.
pub struct Builder {
    engine: fake::Options,
    model: Option<(Arc<Model>, banyan_engine::Options)>,
    lanes: LaneLimits,
    limits: banyan_api::Limits,
    aliases: Aliases,
    gated: bool,
    routing: Routing,
    busy_at: Option<u32>,
    nodes: Vec<(String, String)>,
}

/// A running tree.
pub struct Cluster {
    server: Server,
    registry: Registry,
    builder: Builder,
    root: Option<Node>,
    root_address: String,
    gate: Option<Gate>,
    nodes: BTreeMap<String, Node>,
    api: Api,
}

impl Cluster {
    /// A tree with no nodes yet; every engine takes `token_time` for a step.
    pub fn builder() -> Builder {
        Builder {
            engine: fake::Options::default(),
            model: None,
            lanes: LaneLimits::default(),
            limits: banyan_api::Limits::default(),
            aliases: Aliases::default(),
            gated: false,
            routing: Routing::default(),
            busy_at: None,
            nodes: Vec::new(),
        }
    }

    /// The API.
    pub fn api(&self) -> Http {
        Http(self.api.address())
    }

    /// The root's address, past any gate.
    pub fn root(&self) -> &str {
        &self.root_address
    }

    /// The door in front of the root.
    ///
    /// # Panics
    /// When there is none.
    pub fn gate(&self) -> &Gate {
        self.gate.as_ref().expect("the tree was built with a gate")
    }

    /// The embedded registry's URL.
    pub fn etcd(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Adds a node below `parent`, and waits until the root knows the way to it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn add(&mut self, name: &str, parent: &str) {
        let engine = match &self.builder.model {
            None => Engine::fake(self.builder.engine.clone()),
            Some((model, options)) => Engine::start(Arc::clone(model), options.clone()).expect("the engine starts"),
        };
        self.add_with(name, parent, engine, None).await;
    }

    /// Adds a node that serves made-up models of those names, and nothing else.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn add_models(&mut self, name: &str, parent: &str, models: &[&str]) {
        let fake = |model: &&str| Engine::fake(fake::Options { model: (*model).to_owned(), ..self.builder.engine.clone() });
        let engine = Engine::several(models.iter().map(fake).collect()).expect("the engines start");
        self.add_with(name, parent, engine, None).await;
    }

    /// Adds a node whose engine asks the services in a providers' file, given as its text.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn add_provider(&mut self, name: &str, parent: &str, policy: Policy, providers: &str) {
        let engine = banyan_provider::start(upstream::providers(providers), PROVIDER_PREFIX).expect("the provider starts");
        self.add_with(name, parent, engine, Some(policy)).await;
    }

    async fn add_with(&mut self, name: &str, parent: &str, engine: (Engine, Receiver<Step>), stands_in: Option<Policy>) {
        let config = Config {
            stands_in,
            routing: self.builder.routing,
            busy_at: self.builder.busy_at,
            parent_timeout: Duration::from_secs(10),
            ..Config::child(parse(name), parse(parent))
        };
        let started = Node::start(config, self.registry.clone(), Some(engine), loopback().await).await;
        let node = started.unwrap_or_else(|error| panic!("failed to start {name}: {error:?}"));
        node.ready().await;
        self.nodes.insert(name.to_owned(), node);
        eventually("the root reaches the new node", || query::status(self.root(), name)).await;
    }

    /// Ends a node at once, without a word to anybody.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn kill(&mut self, name: &str) {
        drop(self.nodes.remove(name).expect("a node of that name runs"));
    }

    /// A node's status, as the root hears it.
    ///
    /// # Panics
    /// When it never answers.
    pub async fn status(&self, name: &str) -> NodeStatus {
        eventually("the node answers through the root", || query::status(self.root(), name)).await
    }

    /// Waits until a node's status is as wanted, and gives it back.
    ///
    /// # Panics
    /// When it never is.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        eventually(what, || async { query::status(self.root(), name).await.filter(|status| wanted(status)) }).await
    }

    /// Ends everything, children before their parents.
    pub async fn stop(self) {
        self.api.stop().await;
        futures::future::join_all(self.nodes.into_values().map(Node::stop)).await;
        if let Some(root) = self.root {
            root.stop().await;
        }
        self.server.stop().await;
    }
}

impl Builder {
    /// How long an engine's step takes.
    pub fn token_time(mut self, time: Duration) -> Builder {
        self.engine.token_time = time;
        self
    }

    /// How many sequences an engine runs together.
    pub fn slots(mut self, slots: u32) -> Builder {
        self.engine.batch_max = slots;
        self
    }

    /// How many tokens the context holds.
    pub fn context(mut self, tokens: u32) -> Builder {
        self.engine.context = tokens;
        self
    }

    /// A model in place of made-up text.
    pub fn model(mut self, model: Arc<Model>, options: banyan_engine::Options) -> Builder {
        self.model = Some((model, options));
        self
    }

    /// What may wait at the root.
    pub fn lanes(mut self, lanes: LaneLimits) -> Builder {
        self.lanes = lanes;
        self
    }

    /// The API's bounds.
    pub fn limits(mut self, limits: banyan_api::Limits) -> Builder {
        self.limits = limits;
        self
    }

    /// Names that stand for models, as the lines of their file.
    ///
    /// # Panics
    /// When they make no sense.
    pub fn aliases(mut self, lines: &str) -> Builder {
        self.aliases = Aliases::parse(&format!("[aliases]\n{lines}")).expect("tests' aliases make sense");
        self
    }

    /// With a door in front of the root, which can be shut behind any token.
    pub fn gated(mut self) -> Builder {
        self.gated = true;
        self
    }

    /// How busy nodes pick a child.
    pub fn routing(mut self, routing: Routing) -> Builder {
        self.routing = routing;
        self
    }

    /// How many sequences make a node busy.
    pub fn busy_at(mut self, sequences: u32) -> Builder {
        self.busy_at = Some(sequences);
        self
    }

    /// A node below `parent`; the root is named `root`.
    pub fn node(mut self, name: &str, parent: &str) -> Builder {
        self.nodes.push((name.to_owned(), parent.to_owned()));
        self
    }

    /// Starts everything, and waits until the root knows the way to every node and the API is ready.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn start(mut self) -> Cluster {
        let server = Server::start(loopback().await, None).await.expect("the embedded registry starts");
        let config = banyan_etcd::Config {
            endpoints: vec![format!("http://{}", server.address())],
            cluster: parse("tests"),
            lease_ttl: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            tls: None,
        };
        let registry = Registry::connect(config).await.expect("the embedded registry answers");
        let gate = if self.gated { Some(Gate::open().await) } else { None };
        let config = Config {
            routing: self.routing,
            lanes: self.lanes,
            advertise: gate.as_ref().map(|gate| gate.address().to_owned()),
            ..Config::root(parse("root"))
        };
        let listener = loopback().await;
        let root_address = listener.local_addr().expect("a bound listener has an address").to_string();
        let root = Node::start(config, registry.clone(), None, listener).await.expect("the root starts");
        if let Some(gate) = &gate {
            gate.lead_to(&root_address);
        }
        let config = banyan_api::Config { limits: self.limits.clone(), aliases: self.aliases.clone(), ..Default::default() };
        let api = Api::start(config, registry.clone(), loopback().await).await.expect("the API starts");
        let (nodes, root) = (std::mem::take(&mut self.nodes), Some(root));
        let mut cluster = Cluster { server, registry, builder: self, root, root_address, gate, nodes: BTreeMap::new(), api };
        for (name, parent) in &nodes {
            cluster.add(name, parent).await;
        }
        if !nodes.is_empty() {
            let api = cluster.api();
            eventually("the API is ready", || async move { api.get("/readyz").await.status.is_success().then_some(()) }).await;
        }
        cluster
    }
}

fn parse(name: &str) -> NodeName {
    name.parse().expect("tests name their nodes well")
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port")
}

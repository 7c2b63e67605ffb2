//! A tree of real processes to do harm to: started, killed, stopped, cut off and started again; and what must be true of it
//! when all is over.

mod whole;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use banyan_etcd::Registry;
use banyan_proto::v1;
use serde_json::Value;

use crate::{
    eventually::eventually,
    footprint::Footprint,
    http::Http,
    process::{Banyan, Finished},
    proxy::Proxy,
    query,
};

/// A tree of processes. All are killed when it is dropped.
pub struct Forest {
    /// The registry's endpoints, as the processes are told.
    etcd: String,
    cluster: String,
    nodes: BTreeMap<String, Process>,
    apis: Vec<Replica>,
    registry: Registry,
    embedded: Option<Banyan>,
    /// Before harm was done, by process id.
    before: BTreeMap<u32, Footprint>,
    /// That of the root which reigned then: whoever reigns later holds as much.
    before_reigning: Option<Footprint>,
}

/// How a node is started; a root has no parent.
#[derive(Clone, Debug)]
pub struct Seed {
    name: String,
    parent: Option<String>,
    flags: String,
    proxied: bool,
    registry_proxied: bool,
    host: String,
    registry: Option<String>,
    wrapper: Vec<String>,
}

/// An API.
struct Replica {
    wrapper: Vec<String>,
    port: u16,
    banyan: Option<Banyan>,
}

struct Process {
    seed: Seed,
    port: u16,
    /// In front of its own address, for all who dial it.
    proxy: Option<Proxy>,
    /// Between it and the registry.
    registry_proxy: Option<Proxy>,
    banyan: Option<Banyan>,
    paused: bool,
}

/// A node below `parent`, with an engine without weights.
pub fn node(name: &str, parent: &str) -> Seed {
    Seed {
        name: name.to_owned(),
        parent: Some(parent.to_owned()),
        flags: "--engine fake --token-time 10ms --batch 4".to_owned(),
        proxied: false,
        registry_proxied: false,
        host: "127.0.0.1".to_owned(),
        registry: None,
        wrapper: Vec::new(),
    }
}

/// A root.
pub fn root(name: &str) -> Seed {
    Seed { parent: None, flags: String::new(), ..node(name, "nobody") }
}

impl Seed {
    /// With these flags in place of the usual ones.
    pub fn flags(mut self, flags: &str) -> Seed {
        flags.clone_into(&mut self.flags);
        self
    }

    /// Behind a proxy: whoever dials it goes through that.
    pub fn proxied(mut self) -> Seed {
        self.proxied = true;
        self
    }

    /// With a proxy between it and the registry.
    pub fn registry_proxied(mut self) -> Seed {
        self.registry_proxied = true;
        self
    }

    /// Listening on another address of this machine.
    pub fn host(mut self, host: &str) -> Seed {
        host.clone_into(&mut self.host);
        self
    }

    /// With another way to the registry.
    pub fn registry(mut self, url: &str) -> Seed {
        self.registry = Some(url.to_owned());
        self
    }

    /// Started by another command, which becomes it: `ip netns exec`, `env`.
    pub fn wrapped(mut self, words: &[&str]) -> Seed {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }
}

impl Forest {
    /// A registry of its own, and a root.
    pub async fn new() -> Forest {
        let mut forest = Forest::bare().await;
        forest.plant([root("root")]).await;
        forest
    }

    /// A registry of its own, and nothing else.
    pub async fn bare() -> Forest {
        let embedded = Banyan::start("registry serve --listen 127.0.0.1:0");
        let etcd = embedded.fact("etcd").await;
        let mut forest = Forest::over(&etcd, "faults").await;
        forest.embedded = Some(embedded);
        forest
    }

    /// Nothing yet, over a registry that runs.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn over(etcd: &str, cluster: &str) -> Forest {
        let endpoints = etcd.split(',').map(str::to_owned).collect();
        let name = cluster.parse().expect("tests name their clusters well");
        let registry = Registry::connect(banyan_etcd::Config::new(endpoints, name)).await.expect("the registry answers");
        Forest {
            etcd: etcd.to_owned(),
            cluster: cluster.to_owned(),
            nodes: BTreeMap::new(),
            apis: Vec::new(),
            registry,
            embedded: None,
            before: BTreeMap::new(),
            before_reigning: None,
        }
    }

    /// Starts nodes, parents before their children or at once with them, and waits until all are ready.
    pub async fn plant(&mut self, seeds: impl IntoIterator<Item = Seed>) {
        let mut names = Vec::new();
        for seed in seeds {
            names.push(seed.name.clone());
            self.begin(seed).await;
        }
        for name in &names {
            self.ready(name).await;
        }
    }

    /// Starts a node, and waits for nothing.
    pub async fn begin(&mut self, seed: Seed) {
        let port = free_port();
        let proxy = match seed.proxied {
            true => Some(Proxy::to(&format!("{}:{port}", seed.host)).await),
            false => None,
        };
        let registry_proxy = match seed.registry_proxied {
            true => {
                // One member will do for what is cut off from it.
                let first = self.etcd.split(',').next().unwrap_or_default();
                Some(Proxy::to(first.trim_start_matches("http://")).await)
            }
            false => None,
        };
        let mut process = Process { seed, port, proxy, registry_proxy, banyan: None, paused: false };
        process.start(&self.etcd, &self.cluster);
        self.nodes.insert(process.seed.name.clone(), process);
    }

    /// Waits until a node says that it is ready.
    pub async fn ready(&self, name: &str) {
        self.process(name).printed("is ready at ").await;
    }

    /// Starts an API, and waits until it would answer.
    pub async fn api(&mut self) -> Http {
        self.api_by(&[]).await
    }

    /// The same by another command, which becomes it.
    pub async fn api_by(&mut self, wrapper: &[&str]) -> Http {
        let wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let mut api = Replica { wrapper, port: free_port(), banyan: None };
        api.start(&self.etcd, &self.cluster);
        let http = api.banyan.as_ref().expect("it was just started").api().await;
        self.apis.push(api);
        eventually("the API is ready", || async move {
            http.try_get("/readyz").await.is_ok_and(|answer| answer.status.is_success()).then_some(())
        })
        .await;
        http
    }

    /// The process of a node that runs.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&self, name: &str) -> &Banyan {
        self.known(name).banyan.as_ref().unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// The proxy in front of a node.
    ///
    /// # Panics
    /// When it has none.
    pub fn proxy(&self, name: &str) -> &Proxy {
        self.known(name).proxy.as_ref().unwrap_or_else(|| panic!("{name} has no proxy"))
    }

    /// The proxy between a node and the registry.
    ///
    /// # Panics
    /// When it has none.
    pub fn registry_proxy(&self, name: &str) -> &Proxy {
        self.known(name).registry_proxy.as_ref().unwrap_or_else(|| panic!("{name} has no proxy to the registry"))
    }

    /// Where a node listens, past any proxy.
    pub fn address(&self, name: &str) -> String {
        let process = self.known(name);
        format!("{}:{}", process.seed.host, process.port)
    }

    /// The registry's endpoints.
    pub fn etcd(&self) -> &str {
        &self.etcd
    }

    /// The processes' cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Runs `banyan` with more words, which say where the registry is.
    pub async fn banyan(&self, line: &str) -> Finished {
        crate::process::banyan(&format!("{line} --etcd {} --cluster {}", self.etcd, self.cluster)).await
    }

    /// The way of a query, as `why` tells it.
    pub async fn why(&self, id: &str) -> Value {
        self.banyan(&format!("why {id} -o json")).await.json()
    }

    /// The nodes that run and are not stopped, roots included.
    pub fn living(&self) -> BTreeSet<String> {
        let living = self.nodes.iter().filter(|(_, process)| process.banyan.is_some() && !process.paused);
        living.map(|(name, _)| name.clone()).collect()
    }

    /// Kills a node, and waits until it is gone.
    pub async fn kill(&mut self, name: &str) {
        self.known(name);
        let process = self.nodes.get_mut(name).expect("it is known");
        process.paused = false;
        let banyan = process.banyan.take().unwrap_or_else(|| panic!("{name} does not run"));
        banyan.signal("KILL").await;
        banyan.finished().await;
    }

    /// Kills an API, and waits until it is gone.
    pub async fn kill_api(&mut self, number: usize) {
        let api = self.running_api(number);
        api.signal("KILL").await;
        api.finished().await;
    }

    /// Tells an API to end, and waits until it has.
    pub async fn end_api(&mut self, number: usize) -> Finished {
        let api = self.running_api(number);
        api.signal("TERM").await;
        api.finished().await
    }

    /// Starts an API that was ended, at its old address; waits for nothing.
    pub fn start_api_again(&mut self, number: usize) {
        assert!(self.apis[number].banyan.is_none(), "API {number} runs already");
        self.apis[number].start(&self.etcd, &self.cluster);
    }

    fn running_api(&mut self, number: usize) -> Banyan {
        self.apis[number].banyan.take().unwrap_or_else(|| panic!("API {number} does not run"))
    }

    /// The root that reigns, when one says so.
    pub async fn reigning(&self) -> Option<String> {
        let living = self.living();
        for name in living.iter().filter(|name| self.nodes[*name].seed.parent.is_none()) {
            if self.status(name, "").await.is_some_and(|root| root.state == "ready") {
                return Some(name.clone());
            }
        }
        None
    }

    /// Whether a node has ended by itself; then it may be started again.
    pub async fn fell(&mut self, name: &str) -> bool {
        let process = self.nodes.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"));
        if process.banyan.as_mut().is_some_and(Banyan::runs) {
            return false;
        }
        if let Some(banyan) = process.banyan.take() {
            banyan.finished().await;
        }
        true
    }

    /// Tells a node to end, and waits until it has.
    pub async fn end(&mut self, name: &str) -> Finished {
        let process = self.nodes.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"));
        let banyan = process.banyan.take().unwrap_or_else(|| panic!("{name} does not run"));
        banyan.signal("TERM").await;
        banyan.finished().await
    }

    /// Stops a node in its tracks.
    pub async fn pause(&mut self, name: &str) {
        self.process(name).signal("STOP").await;
        self.nodes.get_mut(name).expect("it is known").paused = true;
    }

    /// Lets a stopped node go on.
    pub async fn resume(&mut self, name: &str) {
        self.process(name).signal("CONT").await;
        self.nodes.get_mut(name).expect("it is known").paused = false;
    }

    /// Starts a node that was ended, as it was, at its old address; waits for nothing.
    pub fn start_again(&mut self, name: &str) {
        let (etcd, cluster) = (self.etcd.clone(), self.cluster.clone());
        let process = self.nodes.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"));
        assert!(process.banyan.is_none(), "{name} runs already");
        process.start(&etcd, &cluster);
    }

    /// A node's status, as `root` hears it.
    pub async fn status(&self, root: &str, name: &str) -> Option<v1::NodeStatus> {
        query::status(&self.address(root), name).await
    }

    /// Waits until a node's status, as it tells it itself, is as wanted.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&v1::NodeStatus) -> bool) -> v1::NodeStatus {
        eventually(&format!("{name}: {what}"), || async { self.status(name, "").await.filter(|status| wanted(status)) }).await
    }

    fn known(&self, name: &str) -> &Process {
        self.nodes.get(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }
}

impl Replica {
    fn start(&mut self, etcd: &str, cluster: &str) {
        let line = format!("api run --listen 127.0.0.1:{} --etcd {etcd} --cluster {cluster}", self.port);
        self.banyan = Some(Banyan::start_by(&self.wrapper, &line));
    }
}

impl Process {
    fn start(&mut self, etcd: &str, cluster: &str) {
        let Seed { name, parent, flags, host, registry, wrapper, .. } = &self.seed;
        let etcd = registry.as_deref().unwrap_or(etcd);
        let etcd = self.registry_proxy.as_ref().map_or_else(|| etcd.to_owned(), |proxy| format!("http://{}", proxy.address()));
        let mut line = format!("node run {name} --listen {host}:{} --etcd {etcd} --cluster {cluster} {flags}", self.port);
        if let Some(parent) = parent {
            line.push_str(&format!(" --parent {parent}"));
        }
        if host != "127.0.0.1" {
            line.push_str(" --insecure");
        }
        if let Some(proxy) = &self.proxy {
            line.push_str(&format!(" --advertise {}", proxy.address()));
        }
        self.banyan = Some(Banyan::start_by(wrapper, &line));
    }
}

impl Drop for Forest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // What they told last is what explains a failure.
        for (name, process) in &self.nodes {
            if let Some(banyan) = &process.banyan {
                eprintln!("---- {name} told:\n{}", banyan.last_words());
            }
        }
        for api in self.apis.iter().filter_map(|api| api.banyan.as_ref()) {
            eprintln!("---- an API told:\n{}", api.last_words());
        }
    }
}

/// A port that nobody has, below those that the system gives to connections: a node that is started again finds its own.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Suites that run at once begin at different places.
    let begin = (std::process::id() % 800) as u16 * 20;
    for _ in 0..u16::MAX {
        let port = 15_000 + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % 17_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

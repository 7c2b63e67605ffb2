//! `banyan up`: a whole tree in one process. Its parts talk over the same loopback sockets as separate processes do.

use std::time::Duration;

use banyan_etcd::Registry;
use banyan_node::Config;
use banyan_proto::{NodeName, Role};
use tokio::net::TcpListener;

use crate::{
    api::{self, ServingArgs},
    args::{self, LaneArgs, RegistryArgs},
    exit::Failure,
    fleet::Fleet,
    inference::{self, InferenceArgs, Kind},
    listen,
    observe::ObserveArgs,
    output,
    stop::Stop,
    supervisor,
    tls::{EtcdTlsArgs, Listening, TlsArgs},
};

/// Long enough for a registry on this machine to say that it is one.
const PROBE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes to start below the root.
    #[arg(long, env = "BANYAN_NODES", value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// Where to serve the API and the page; 0.0.0.0 lets other machines in.
    #[arg(long, env = "BANYAN_LISTEN", value_name = "HOST:PORT", default_value = listen::API, value_parser = args::address)]
    pub(crate) listen: String,
    /// Where the registry listens, for nodes that join.
    #[arg(long, env = "BANYAN_REGISTRY_LISTEN", value_name = "HOST:PORT", default_value = listen::REGISTRY, value_parser = args::address)]
    registry_listen: String,
    /// Uses this registry, and starts none.
    #[arg(long, env = "BANYAN_ETCD", value_name = "URL", value_delimiter = ',')]
    etcd: Option<Vec<String>>,
    /// Registry keys are kept apart by this name, so that several clusters can share one etcd.
    #[arg(long, env = "BANYAN_CLUSTER", value_name = "NAME", default_value = "default")]
    cluster: NodeName,
    #[command(flatten)]
    tls: EtcdTlsArgs,
    /// Lets the registry listen beyond this machine without certificates, on a network where everybody is trusted.
    #[arg(long, env = "BANYAN_INSECURE")]
    insecure: bool,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    #[command(flatten)]
    lanes: LaneArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    pub(crate) inference: InferenceArgs,
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    let mut fleet = Fleet::default();
    // A part that started before another failed still gives its name back.
    let outcome = match stop.unless(start(&args, &mut fleet)).await {
        Ok(()) => {
            supervisor::ready(&stop);
            tokio::select! {
                () = stop.asked() => Ok(()),
                ended = fleet.ended() => ended,
            }
        }
        failed => failed,
    };
    if outcome.is_ok() {
        output::note("stopping; Ctrl-C again quits at once");
    }
    fleet.stop().await;
    outcome
}

async fn start(args: &Args, fleet: &mut Fleet) -> Result<(), Failure> {
    let aliases = args.serving.aliases.read()?;
    // All ports are taken before the model is loaded: nobody likes to wait for a failure.
    let registry_listener = match args.etcd {
        None => Some(bind_registry(args).await?),
        Some(_) => None,
    };
    let api_listener = listen::bind("the API", "--listen", &args.listen).await?;
    fleet.observed = args.observe.start("banyan", &args.listen).await?;
    let mut node_listeners = Vec::new();
    for _ in 0..=args.nodes + u16::from(args.inference.has_providers()) {
        node_listeners.push(listen::bind_node(None).await?);
    }
    let store = Some(args.serving.store.open().await?);
    let endpoints = match (&args.etcd, registry_listener) {
        (None, Some(listener)) => vec![format!("http://{}", fleet.start_registry(listener).await?.address())],
        (endpoints, _) => endpoints.clone().unwrap_or_default(),
    };
    let tls = args.tls.read()?;
    let registry =
        Registry::connect(banyan_etcd::Config { tls, ..banyan_etcd::Config::new(endpoints.clone(), args.cluster.clone()) });
    let registry = registry.await?;
    let providers = args.inference.providers()?;
    // With --engine provider there is nobody but them.
    let nodes = if args.inference.engine == Kind::Provider { 0 } else { args.nodes };
    let weights = if nodes > 0 { Some(args.inference.load(nodes.into()).await?) } else { None };

    let mut listeners = node_listeners.into_iter();
    let mut next_listener = || listeners.next().expect("a listener was bound for the root and for each node");
    let root: NodeName = "root".parse().expect("a valid name");
    let configured = |config: Config| Config { routing: args.inference.routing, ..config };
    let started = fleet
        .start_node(
            Config { lanes: args.lanes.limits(), ..configured(Config::root(root.clone())) },
            registry.clone(),
            None,
            next_listener(),
        )
        .await;
    started.map_err(|failure| match &args.etcd {
        Some(_) => failure.hint(
            "where a tree runs already, `banyan node run my-name --parent root` joins it, and `--cluster NAME` keeps another apart",
        ),
        None => failure,
    })?;
    let mut started = Vec::new();
    if let Some(weights) = &weights {
        let busy_at = args.inference.busy_at(weights);
        let mut served = String::new();
        for number in 1..=nodes {
            let name: NodeName = format!("node-{number}").parse().expect("a valid name");
            let engine = args.inference.start(weights, usize::from(nodes))?;
            served = inference::describe(engine.0.info(), busy_at);
            let batch_max = args.inference.batch.given();
            let config = Config { busy_at, batch_max, ..configured(Config::child(name, root.clone())) };
            fleet.start_node(config, registry.clone(), Some(engine), next_listener()).await?;
        }
        started.push(format!("{}, each with {served}", output::count(usize::from(nodes), "node")));
    }
    if let Some(providers) = &providers {
        let engine = args.inference.start(providers, 1)?;
        started.push(format!("the node provider with {}", inference::describe(engine.0.info(), None)));
        let name: NodeName = "provider".parse().expect("a valid name");
        let config = Config { stands_in: providers.policy(), ..configured(Config::child(name, root.clone())) };
        fleet.start_node(config, registry.clone(), Some(engine), next_listener()).await?;
    }
    fleet.ready().await;
    let limits = banyan_api::Limits { chat_idle: args.serving.chat_idle, ..banyan_api::Limits::default() };
    let https = args.serving.https()?;
    let scheme = api::scheme(https.as_ref());
    let (open, log_texts) = (args.serving.open, args.serving.log_texts);
    let config = banyan_api::Config { store, open, log_texts, aliases, limits, https, ..banyan_api::Config::default() };
    let address = fleet.start_api(config, registry, api_listener).await?.address();

    let started = started.join(", and ");
    let etcd = endpoints.join(",");
    let elsewhere = if etcd == format!("http://{}", listen::REGISTRY) { String::new() } else { format!(" --etcd {etcd}") };
    output::print(&format!(
        "banyan is up: a root and {started}\n  \
           page      {scheme}://{address}/\n  \
           API       {scheme}://{address}/v1\n  \
           registry  {etcd}\n  \
           join      banyan node run my-name --parent root{elsewhere}\n  \
           look      banyan node tree{elsewhere}{}\n\
         Ctrl-C stops everything.",
        fleet.observed.told()
    ))
}

/// Binds the registry's port; where an etcd has it already, using that one is what is meant most of the time.
async fn bind_registry(args: &Args) -> Result<TcpListener, Failure> {
    let failure = match listen::bind("the registry", "--registry-listen", &args.registry_listen).await {
        Ok(listener) => {
            let address = listener.local_addr().map_err(anyhow::Error::new)?;
            let listening = Listening { what: "the registry", address, role: Role::Registry, name: None, cluster: None };
            listening.guard(args.insecure)?;
            return Ok(listener);
        }
        Err(failure) => failure,
    };
    let endpoints = vec![format!("http://{}", args.registry_listen)];
    let there = RegistryArgs { endpoints, cluster: args.cluster.clone(), tls: TlsArgs::default() };
    match tokio::time::timeout(PROBE, there.connect()).await {
        Ok(Ok(_)) => Err(failure.hint(format!(
            "a registry runs there already (perhaps of another `banyan up`): `banyan node run my-name --parent root --etcd http://{0}` \
             joins its tree, `banyan up --etcd http://{0} --cluster NAME` starts a tree of its own in it, and \
             `--registry-listen 127.0.0.1:0` starts another registry",
            args.registry_listen
        ))),
        _ => Err(failure),
    }
}

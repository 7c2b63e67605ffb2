//! `banyan node run`: one node, until it is told to stop.

use std::{net::SocketAddr, time::Duration};

use banyan_etcd::{ReadError, RegisterError, Registry};
use banyan_node::{Config, turn_away};
use banyan_proto::{NodeName, Role};

use crate::{
    args::{self, LaneArgs, RegistryArgs},
    exit::{Code, Failure},
    fleet::Fleet,
    inference::{self, InferenceArgs, Kind, Weights},
    listen,
    observe::ObserveArgs,
    output,
    stop::Stop,
    supervisor,
    tls::{ListenArgs, Listening},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node's name, which nobody else in the cluster has: 1 to 63 of a-z 0-9 - _ and the dot.
    #[arg(env = "BANYAN_NAME")]
    pub(crate) name: NodeName,
    /// The node that it becomes a child of; without it, it is a root, which takes queries and never infers.
    #[arg(long, env = "BANYAN_PARENT", value_name = "NAME")]
    pub(crate) parent: Option<NodeName>,
    /// A root in waiting: it takes the tree's place when no root has it or its root dies, and waits again when another one has it.
    #[arg(long, env = "BANYAN_STANDBY", conflicts_with = "parent")]
    standby: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    listening: ListenArgs,
    /// Where to listen; by default the first free port from 7600 on, on loopback.
    #[arg(long, env = "BANYAN_LISTEN", value_name = "HOST:PORT", value_parser = args::address)]
    listen: Option<String>,
    /// Where others reach it, when that is not where it listens.
    #[arg(long, env = "BANYAN_ADVERTISE", value_name = "HOST:PORT", value_parser = args::address)]
    advertise: Option<String>,
    /// The tree that it belongs to.
    #[arg(long, env = "BANYAN_TREE", value_name = "NAME", default_value = "main")]
    tree: NodeName,
    /// How long to wait for a parent that is not there yet.
    #[arg(long, env = "BANYAN_PARENT_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = args::duration)]
    parent_timeout: Duration,
    /// How long running queries may take to finish when the node is told to stop; then others go on with them. Shorter than the
    /// 30 s after which Kubernetes kills.
    #[arg(long, env = "BANYAN_DRAIN", value_name = "TIME", default_value = "25s", value_parser = args::duration)]
    drain: Duration,
    #[command(flatten)]
    lanes: LaneArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    pub(crate) inference: InferenceArgs,
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    let mut fleet = Fleet::default();
    let outcome = match stop.unless(start(&args, &mut fleet)).await {
        Ok(()) => {
            supervisor::ready(&stop);
            tokio::select! {
            () = stop.asked() => {
                output::note("leaving: what runs may finish; Ctrl-C again quits at once");
                fleet.drain(args.drain).await;
                Ok(())
            }
            ended = fleet.ended() => ended,
            }
        }
        failed => failed,
    };
    fleet.stop().await;
    outcome
}

async fn start(args: &Args, fleet: &mut Fleet) -> Result<(), Failure> {
    if let Some(parent) = &args.parent {
        check_parent(&args.name, parent)?;
    }
    if args.inference.names_providers() && args.inference.engine != Kind::Provider {
        return Err(Failure::told(Code::Usage, "--providers goes with --engine provider")
            .hint("a node has one engine: start another node for the providers"));
    }
    let listener = listen::bind_node(args.listen.as_deref()).await?;
    fleet.observed = args.observe.start("banyan-node", args.name.as_str()).await?;
    let address = listener.local_addr().map_err(anyhow::Error::new)?;
    check_advertised(args, address)?;
    let listening = Listening {
        what: "the node",
        address,
        role: if args.parent.is_some() { Role::Node } else { Role::Root },
        name: Some(&args.name),
        cluster: Some(&args.registry.cluster),
    };
    let transport = args.registry.tls.listening(&args.listening, &listening).await?;
    let prepared = async {
        let registry = args.registry.connect_patiently().await?;
        look_ahead(args, address, &registry).await?;
        let weights = match args.parent {
            Some(_) => Some(args.inference.load(1).await?),
            None => None,
        };
        Ok::<_, Failure>((registry, weights))
    };
    let (registry, weights) = tokio::select! {
        prepared = prepared => prepared?,
        never = turn_away(&listener) => match never {},
    };
    args.registry.tls.keep(&transport, Some(registry.clone()));

    let base = match &args.parent {
        Some(parent) => Config::child(args.name.clone(), parent.clone()),
        None => Config::root(args.name.clone()),
    };
    let config = Config {
        tree: args.tree.clone(),
        standby: args.standby,
        advertise: args.advertise.clone(),
        routing: args.inference.routing,
        busy_at: weights.as_ref().and_then(|weights| args.inference.busy_at(weights)),
        batch_max: args.inference.batch.given(),
        parent_timeout: args.parent_timeout,
        lanes: args.lanes.limits(),
        stands_in: weights.as_ref().and_then(Weights::policy),
        transport,
        ..base
    };
    let engine = weights.as_ref().map(|weights| args.inference.start(weights, 1)).transpose()?;
    let served = engine.as_ref().map(|(engine, _)| inference::describe(engine.info(), config.busy_at));
    let address = fleet.start_node(config, registry, engine, listener).await?.address().to_owned();
    fleet.ready().await;
    let place = match (&args.parent, served) {
        (Some(parent), Some(served)) => format!("child of {parent}, with {served}"),
        _ if args.standby => format!("standby of the tree {}", args.tree),
        _ => format!("root of the tree {}", args.tree),
    };
    output::print(&format!("node {} is ready at {address}: {place}{}", args.name, fleet.observed.told()))
}

/// Nobody hangs below itself; the registry would say so too, but only after everything else was started.
pub(crate) fn check_parent(name: &NodeName, parent: &NodeName) -> Result<(), Failure> {
    if name == parent {
        return Err(Failure::told(Code::Usage, format!("`{name}` can't be its own parent"))
            .hint("name another node; `banyan node tree` shows which there are"));
    }
    Ok(())
}

/// Others can't dial 'any address'.
fn check_advertised(args: &Args, address: SocketAddr) -> Result<(), Failure> {
    if address.ip().is_unspecified() && args.advertise.is_none() {
        return Err(Failure::told(Code::Usage, format!("others can't dial {address}"))
            .hint(format!("say where they reach this node: `--advertise HOST:{}`", address.port())));
    }
    Ok(())
}

/// What would fail after the model is loaded fails better before; and who waits is told for what.
async fn look_ahead(args: &Args, address: SocketAddr, registry: &Registry) -> Result<(), Failure> {
    let advertised = args.advertise.clone().unwrap_or_else(|| address.to_string());
    // A holder at the very address that this process listens on is its own earlier life, which was killed: the node waits for
    // that one's lease to end.
    let holder = match registry.member(&args.name).await {
        // It is away again, and registering will wait for it.
        Err(ReadError::Unavailable { .. }) => return Ok(()),
        holder => holder?,
    };
    if let Some(holder) = holder.filter(|holder| holder.address != advertised) {
        return Err(RegisterError::Taken { holder: Box::new(holder) }.into());
    }
    match &args.parent {
        None if args.inference.names_a_model() => {
            output::note("a root never infers: it loads no model; nodes below it do, with `banyan node run NAME --parent ...`");
        }
        Some(parent) if registry.member(parent).await.is_ok_and(|parent| parent.is_none()) => {
            output::note(&format!(
                "the parent `{parent}` is not there yet: waiting up to {:?} for it (`banyan node run {parent}` starts it)",
                args.parent_timeout
            ));
        }
        _ => {}
    }
    Ok(())
}

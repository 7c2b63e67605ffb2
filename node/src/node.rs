//! The handle to a node: starts its parts in the right order, and stops them in the reverse one.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banyan_engine::{Engine, Output, Refusal, Request, SequenceId, Step};
use banyan_etcd::{Member, Model, RegisterError, Registration, Registry, Role};
use banyan_proto::{
    FILE_DESCRIPTORS, NodeName, VERSION, dial,
    transport::Clients,
    v1::{inspect_server::InspectServer, root_server::RootServer, tree_server::TreeServer},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
};

use crate::{
    config::Config,
    core::{Core, Handle, engine_settings},
    deliver::Deliver,
    inspect::{Facts, Inspector},
    meters,
    services::{InspectService, RootService, TreeService},
    standby::Throne,
    uplink::{Identity, Uplink},
};

/// What is being sent when a node stops gets that long to leave.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Prefill and one decode.
const WARM_UP_TOKENS: u32 = 2;
/// A large model whose weights are still read from a slow disk takes minutes.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(300);

/// The name of a node that died without a word is free when its lease has ended; this is longer than any lease should be.
const GHOST_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries to register at a registry that does not answer.
const REGISTRY_PAUSE: Duration = Duration::from_millis(500);
/// After a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often its lease is looked at meanwhile.
const GHOST_INTERVAL: Duration = Duration::from_millis(500);

/// A running node. Dropping it stops it roughly; [`Node::stop`] does so cleanly.
pub struct Node {
    address: String,
    core: Handle,
    registration: Arc<Mutex<Option<Registration>>>,
    inspector: Arc<Inspector>,
    cancel: CancellationToken,
    deposed: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    links: Vec<JoinHandle<()>>,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is unusable.
    #[error("failed to use the listening socket")]
    Listen {
        /// What the system says.
        source: std::io::Error,
    },
    /// A root has no engine, and everyone else has one.
    #[error("{0}")]
    Engine(&'static str),
    /// Its model answers nothing, so nobody should be sent to it.
    #[error("the model does not answer")]
    Silent {
        /// What the engine said; nothing when it ended or took too long.
        source: Option<Refusal>,
    },
    /// The registry refused.
    #[error("failed to register {name}")]
    Register {
        /// The node.
        name: NodeName,
        /// Why.
        source: RegisterError,
    },
    /// The parent did not appear in time.
    #[error("no node {parent} appeared within {} s: start it, or name another parent", waited.as_secs_f32())]
    ParentMissing {
        /// The wanted parent.
        parent: NodeName,
        /// How long it was waited for.
        waited: Duration,
    },
    /// gRPC reflection could not be set up.
    #[error("failed to describe the services")]
    Reflection {
        /// Why.
        source: tonic_reflection::server::Error,
    },
}

/// Why a node ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its server did.
    #[error("the node's server ended")]
    Server,
    /// Another node has become its tree's root.
    #[error(
        "another root has taken this one's place while it was silent: see `banyan node list`; started with --standby it would \
         wait for its turn"
    )]
    Deposed,
    /// Its task did.
    #[error("the node's task ended")]
    Core,
}

impl Node {
    /// Registers the node, starts its services on `listener`, and attaches it to its parent in the background. A root
    /// has no engine; every other node has one, and registers when that has answered.
    ///
    /// # Errors
    /// When the engine does not answer, the name is taken, the parent does not appear in time, or the registry or the socket can't be used.
    pub async fn start(
        config: Config,
        registry: Registry,
        mut engine: Option<(Engine, mpsc::Receiver<Step>)>,
        listener: TcpListener,
    ) -> Result<Node, StartError> {
        match (&config.parent, &engine) {
            (None, Some(_)) => return Err(StartError::Engine("a root never infers, so it takes no engine")),
            (Some(_), None) => return Err(StartError::Engine("a node that is no root needs an engine")),
            _ => {}
        }
        let bound = listener.local_addr().map_err(|source| StartError::Listen { source })?;
        let address = config.advertise.clone().unwrap_or_else(|| reachable(bound));
        let info = engine.as_ref().map(|(engine, _)| engine.info().clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let member = Member {
            name: config.name.clone(),
            parent: config.parent.clone(),
            address: address.clone(),
            role: match &config.parent {
                Some(_) => Role::Node,
                None if config.standby => Role::Standby,
                None => Role::Root,
            },
            tree: config.tree.clone(),
            incarnation: now.as_nanos() as u64,
            version: VERSION.to_owned(),
            models: info
                .iter()
                .flat_map(|info| &info.models)
                .map(|served| Model {
                    id: served.model.clone(),
                    context: served.context,
                    chat: served.chat,
                    created: served.created,
                    stands_in: config.stand_in(&served.model),
                })
                .collect(),
            device: info.as_ref().map(|info| info.device.clone()).unwrap_or_default(),
            started_at: now.as_millis() as u64,
        };
        let joining = async {
            // A provider has nothing to warm up, and is paid for each answer.
            if let Some((engine, steps)) = engine.as_mut().filter(|_| config.stands_in.is_none()) {
                warm_up(engine, steps).await?;
            }
            register(&config, &registry, member).await
        };
        let registration = tokio::select! {
            joined = joining => joined?,
            never = turn_away(&listener) => match never {},
        };
        let (incarnation, epoch) = (registration.member().incarnation, registration.epoch());
        let cancel = CancellationToken::new();
        let core = Core::spawn(&config, engine, epoch, cancel.clone());
        let (wanted, wanted_seen) = match &config.parent {
            Some(parent) => {
                let (sender, receiver) = watch::channel(parent.clone());
                (Some(sender), Some(receiver))
            }
            None => (None, None),
        };
        let fingerprint = info.as_ref().map(banyan_engine::Info::fingerprint).unwrap_or_default();
        let settings = info.as_ref().map(|info| engine_settings(&config, info));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::Serving).await;
        let inspector = Arc::new(Inspector {
            facts: Facts {
                name: config.name.clone(),
                address: address.clone(),
                tree: config.tree.clone(),
                cluster: registry.cluster().clone(),
                registry: registry.endpoints().join(","),
                incarnation,
                root: config.parent.is_none(),
                device: info.as_ref().map(|info| info.device.clone()).unwrap_or_default(),
                models: info.iter().flat_map(|info| &info.models).map(|served| served.model.clone()).collect(),
                fingerprint: fingerprint.clone(),
                busy_at: settings.as_ref().map_or(0, |settings| settings.busy_at),
                batch_max: settings.as_ref().map_or(0, |settings| settings.batch_max),
                routing: config.routing.to_string(),
            },
            core: core.clone(),
            registered: registration.registered(),
            registration: Arc::new(Mutex::new(Some(registration))),
            wanted,
            view: registry.watch(),
            health,
            transport: config.transport.clone(),
        });
        meters::read_when_asked(&config.metrics, &inspector);
        let server = serve(&config, &registry, &inspector, health_service, listener, cancel.clone()).await?;
        let mut links = Vec::new();
        let deposed = CancellationToken::new();
        if config.parent.is_none() {
            let throne = Throne {
                name: config.name.clone(),
                tree: config.tree.clone(),
                standby: config.standby,
                registry: registry.clone(),
                registration: inspector.registration.clone(),
                core: core.clone(),
                epoch,
                deposed: deposed.clone(),
                transport: config.transport.clone(),
            };
            links.push(tokio::spawn(throne.run()));
        }
        if let Some(wanted) = wanted_seen {
            let (root, root_seen) = watch::channel(None);
            let deliver = Deliver {
                name: config.name.clone(),
                incarnation,
                fingerprint: fingerprint.clone(),
                core: core.clone(),
                root: root_seen,
                transport: config.transport.clone(),
            };
            let us = Identity {
                name: config.name.clone(),
                address: address.clone(),
                incarnation,
                fingerprint,
                cluster: registry.cluster().clone(),
                transport: config.transport.clone(),
            };
            let uplink = Uplink {
                us: Arc::new(us),
                tree: config.tree.clone(),
                registry,
                wanted,
                core: core.clone(),
                root,
                inspector: inspector.clone(),
            };
            links.push(tokio::spawn(uplink.run()));
            links.push(tokio::spawn(deliver.run()));
        }
        Ok(Node { address, core, registration: inspector.registration.clone(), inspector, cancel, deposed, server, links })
    }

    /// Where others reach the node, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the node can be given queries: it is attached, and has a way to the root. A root is ready at once.
    pub async fn ready(&self) {
        loop {
            match self.inspector.status("").await {
                Ok(status) if ["ready", "busy", "draining", "standby"].contains(&status.state.as_str()) => return,
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                // Stopping: there is nothing to wait for.
                Err(_) => return,
            }
        }
    }

    /// Leaves: takes nothing more, finishes what runs, and hands over to others what has not ended by then. The node stays
    /// as it is until it is [stopped](Node::stop).
    pub async fn drain(&self, deadline: Duration) {
        // The task may have ended by itself.
        let _ = self.inspector.drain_here(deadline).await;
        self.core.ended().await;
    }

    /// Hands back what the node holds (a root fails what is live), leaves the registry, and closes every link.
    pub async fn stop(mut self) {
        self.core.stop().await;
        let registration = self.registration.lock().await.take();
        if let Some(registration) = registration {
            registration.leave().await;
        }
        // What was handed back must reach the root before its stream is cut, so the streams' own ends come first.
        for link in &mut self.links {
            if timeout(STOP_TIMEOUT, &mut *link).await.is_err() {
                link.abort();
            }
        }
        self.cancel.cancel();
        if !self.server.is_finished() && timeout(STOP_TIMEOUT, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }

    /// Waits until the node ends by itself: well, because it was told to leave, or badly.
    ///
    /// # Errors
    /// When a part of it ended that should not.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        tokio::select! {
            _ = &mut self.server => Err(NodeError::Server),
            () = self.deposed.cancelled() => Err(NodeError::Deposed),
            () = self.core.ended() => if self.core.has_left() { Ok(()) } else { Err(NodeError::Core) },
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
        for link in &self.links {
            link.abort();
        }
        // With the task its streams end, and with these the server.
    }
}

/// Lets the engine generate something short: who is sent queries answers them, and the first client finds caches warm.
async fn warm_up(engine: &Engine, steps: &mut mpsc::Receiver<Step>) -> Result<(), StartError> {
    // A number that the node's task never gets to.
    let id = SequenceId(u64::MAX);
    engine.submit(Request::fixed(id, vec![0], WARM_UP_TOKENS));
    let answered = async {
        while let Some(step) = steps.recv().await {
            match step.outputs.into_iter().find(|output| output.id() == id && output.is_last()) {
                Some(Output::Refused { refusal, .. }) => return Err(Some(refusal)),
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Err(None)
    };
    let answered = timeout(WARM_UP_TIMEOUT, answered).await.unwrap_or(Err(None));
    answered.map_err(|source| StartError::Silent { source })
}

/// Registers, and waits for the registry where that is away, and for the parent where it is not there yet.
/// Closes what connects, at once, for as long as it is waited for: who can't serve yet keeps nobody waiting who dials it, but sends
/// them elsewhere.
pub async fn turn_away(listener: &TcpListener) -> Infallible {
    loop {
        if listener.accept().await.is_err() {
            // Out of file descriptors, and the like.
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn register(config: &Config, registry: &Registry, member: Member) -> Result<Registration, StartError> {
    let mut parent_until = None;
    let own_ghost = Instant::now() + GHOST_TIMEOUT;
    let mut view = registry.watch();
    let (mut told, mut told_away) = (false, false);
    loop {
        match registry.register(member.clone()).await {
            Ok(registration) => return Ok(registration),
            Err(RegisterError::ParentMissing { parent, .. }) => {
                if !told {
                    tracing::info!(node = %config.name, %parent, timeout_s = config.parent_timeout.as_secs(), "the parent is not there yet, waiting for it");
                    told = true;
                }
                let deadline = *parent_until.get_or_insert_with(|| Instant::now() + config.parent_timeout);
                let appeared = timeout_at(deadline, view.wait_for(|view| view.is_there(&parent, &config.tree)));
                match appeared.await {
                    Ok(Ok(_)) => {}
                    // The watch lives as long as the registry's handle, which we have.
                    Ok(Err(_)) | Err(_) => return Err(StartError::ParentMissing { parent, waited: config.parent_timeout }),
                }
            }
            // We listen where the holder says that it listens, so that one is dead, and its lease will end.
            Err(RegisterError::Taken { holder }) if holder.address == member.address && Instant::now() < own_ghost => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(node = %config.name, "an earlier life of this node still holds the name, waiting for its lease to end");
                }
                // When it has not gone by then, the next try says who holds the name.
                let gone = view.wait_for(|view| !view.members.contains_key(&config.name));
                if timeout_at(own_ghost.min(Instant::now() + GHOST_INTERVAL), gone).await.is_err() {
                    // It has not renewed it when it was time to.
                    if let Err(error) = registry.evict_lapsed(&holder).await {
                        tracing::debug!(node = %config.name, %error, "can't look at the earlier life's lease");
                    }
                }
            }
            // Each try has waited for an answer already.
            Err(error @ RegisterError::Unavailable { .. }) => {
                if !std::mem::replace(&mut told_away, true) {
                    tracing::warn!(node = %config.name, %error, "can't register, trying on");
                }
                sleep(REGISTRY_PAUSE).await;
            }
            Err(source) => return Err(StartError::Register { name: config.name.clone(), source }),
        }
    }
}

async fn serve(
    config: &Config,
    registry: &Registry,
    inspector: &Arc<Inspector>,
    health_service: HealthServer<impl Health>,
    listener: TcpListener,
    cancel: CancellationToken,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, StartError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
        .build_v1()
        .map_err(|source| StartError::Reflection { source })?;
    let core = inspector.core.clone();
    let limit = banyan_proto::MESSAGE_BYTES_MAX;
    let tree = TreeServer::new(TreeService::new(registry.cluster().clone(), core.clone()));
    let inspect = InspectServer::new(InspectService { inspector: inspector.clone(), core: core.clone() });
    // Only a root answers questions and takes deliveries.
    let root = config
        .parent
        .is_none()
        .then(|| RootServer::new(RootService::new(core)).max_decoding_message_size(limit).max_encoding_message_size(limit));
    let router = dial::server()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(inspect)
        .add_service(tree.max_decoding_message_size(limit).max_encoding_message_size(limit))
        .add_optional_service(root);
    let incoming = config.transport.incoming(listener, Clients::OfCluster);
    Ok(tokio::spawn(router.serve_with_incoming_shutdown(incoming, cancel.cancelled_owned())))
}

/// The address that others on this machine reach; who listens on all interfaces advertises another one by hand.
fn reachable(bound: SocketAddr) -> String {
    if bound.ip().is_unspecified() {
        let loopback = if bound.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        return format!("{loopback}:{}", bound.port());
    }
    bound.to_string()
}

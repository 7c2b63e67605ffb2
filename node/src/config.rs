//! What a node is told when it starts.

use std::{fmt, str::FromStr, time::Duration};

use banyan_etcd::{Policy, StandIn};
use banyan_observe::{Metrics, Tracer};
use banyan_proto::{NodeName, PROVIDER_PREFIX, Transport};
use serde::{Deserialize, Serialize};

use crate::recording::Recording;

/// What a node is told when it starts. [`Config::root`] and [`Config::child`] give the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, unique in the cluster.
    pub name: NodeName,
    /// The tree that it belongs to.
    pub tree: NodeName,
    /// The wanted parent; `None` makes the node a root.
    pub parent: Option<NodeName>,
    /// A root in waiting: takes its tree's place when that is free, and waits again when another one has it.
    pub standby: bool,
    /// Where others reach the node; by default the listener's own address.
    pub advertise: Option<String>,
    /// How a busy node picks a child.
    pub routing: Routing,
    /// Sequences that the node runs before it calls itself busy; by default what its engine batches.
    pub busy_at: Option<u32>,
    /// Sequences that run together at most; by default what the engine batches.
    pub batch_max: Option<u32>,
    /// How long to wait for a parent that does not exist yet.
    pub parent_timeout: Duration,
    /// What may wait at the root.
    pub lanes: LaneLimits,
    /// Of a provider: when its models stand in for those of the tree's own nodes.
    pub stands_in: Option<Policy>,
    /// Keeps every event and action, for replays.
    pub recording: Option<Recording>,
    /// What is measured goes there.
    pub metrics: Metrics,
    /// Spans are made with it.
    pub tracer: Tracer,
    /// How others are dialled and served.
    pub transport: Transport,
}

impl Config {
    /// A root of the tree `main`.
    pub fn root(name: NodeName) -> Self {
        Config {
            name,
            tree: "main".parse().expect("a valid name"),
            parent: None,
            standby: false,
            advertise: None,
            routing: Routing::default(),
            busy_at: None,
            batch_max: None,
            parent_timeout: Duration::from_secs(60),
            lanes: LaneLimits::default(),
            stands_in: None,
            recording: None,
            metrics: Metrics::default(),
            tracer: Tracer::default(),
            transport: Transport::default(),
        }
    }

    /// A root in waiting of the tree `main`.
    pub fn standby(name: NodeName) -> Self {
        Config { standby: true, ..Config::root(name) }
    }

    /// What one of a provider's models stands in for: the one of the same name without the prefix.
    pub(crate) fn stand_in(&self, model: &str) -> Option<StandIn> {
        let model = model.strip_prefix(PROVIDER_PREFIX)?.to_owned();
        self.stands_in.map(|policy| StandIn { model, policy })
    }

    /// A node below `parent`.
    pub fn child(name: NodeName, parent: NodeName) -> Self {
        Config { parent: Some(parent), ..Config::root(name) }
    }
}

/// How a node that can't run a query itself picks the child that gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// The next child whose subtree has room; over all children when none has.
    #[default]
    RoundRobin,
    /// The next child, whatever it reported: local knowledge only, as in the first tree of this kind. The root keeps
    /// nothing back and recalls nothing.
    Classic,
    /// Children with room in proportion to the sequences that their subtrees run together.
    Weighted,
    /// The child with the largest free share of its slots.
    LeastBusy,
}

/// The text names no routing.
#[derive(Debug, thiserror::Error)]
#[error("no such routing: {0:?}; there are round-robin, classic, weighted and least-busy")]
pub struct UnknownRouting(String);

impl FromStr for Routing {
    type Err = UnknownRouting;

    fn from_str(text: &str) -> Result<Self, UnknownRouting> {
        match text {
            "round-robin" => Ok(Routing::RoundRobin),
            "classic" => Ok(Routing::Classic),
            "weighted" => Ok(Routing::Weighted),
            "least-busy" => Ok(Routing::LeastBusy),
            other => Err(UnknownRouting(other.to_owned())),
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Routing::RoundRobin => "round-robin",
            Routing::Classic => "classic",
            Routing::Weighted => "weighted",
            Routing::LeastBusy => "least-busy",
        })
    }
}

/// What may wait at the root before queries are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneLimits {
    /// Queries. More than a patient client would see through in its deadline only burns memory.
    pub entries: usize,
    /// Bytes of their payloads: what a root can spare beside its streams.
    pub bytes: usize,
    /// Upper bounds of their tokens, together: work that is promised and not begun.
    pub tokens: u64,
    /// Bytes of the payloads of all live queries, those that nodes run included: the root keeps each for a next attempt.
    pub live_bytes: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        LaneLimits { entries: 4096, bytes: 256 << 20, tokens: 64 << 20, live_bytes: 1 << 30 }
    }
}

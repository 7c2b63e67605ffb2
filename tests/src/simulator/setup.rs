//! What a world is like: its network, its tasks, its bounds.

use banyan_node::{LaneLimits, Routing};

use super::{
    pipe::Delay,
    world::{MILLISECOND, SECOND},
};

/// What a world is like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// From any node to any other.
    pub delay: Delay,
    /// From a message's arrival until the task runs that it is for, in nanoseconds.
    pub wake: u64,
    /// What a task takes for one input, in nanoseconds.
    pub handling: u64,
    /// What the way between client and root takes on top of a link, there and back together, in nanoseconds.
    pub client: u64,
    /// How a busy node picks a child.
    pub routing: Routing,
    /// What may wait at the root.
    pub lanes: LaneLimits,
    /// How long a dead node's key stays.
    pub lease: u64,
    /// How long the watches are behind the registry.
    pub watch: u64,
    /// How long a query may wait while a node with room for it idles.
    pub idle_wait: u64,
    /// Whether the trace holds whole messages, or only what they are about.
    pub whole_trace: bool,
}

impl Setup {
    /// A fast network, and tasks that take what they take on a machine of today.
    pub fn new(seed: u64) -> Setup {
        Setup {
            seed,
            delay: Delay { least: 100_000, jitter: 50_000 },
            wake: 10_000,
            handling: 3_000,
            client: 0,
            routing: Routing::RoundRobin,
            lanes: LaneLimits::default(),
            lease: 10 * SECOND,
            watch: 10 * MILLISECOND,
            idle_wait: 6 * SECOND,
            whole_trace: false,
        }
    }
}

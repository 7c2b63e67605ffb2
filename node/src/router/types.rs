//! What goes into the router and what comes out of it.

use std::sync::Arc;

use banyan_proto::{Attempt, NodeName, QueryId};
use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::{capacity::Capacity, config::Routing};

/// What a router is built from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The node's name, for queries that prefer it.
    pub name: NodeName,
    /// How a child is picked.
    pub routing: Routing,
    /// The node's own engine; `None` at the root, which never infers.
    pub engine: Option<Engine>,
}

/// What the router knows of the node's engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Engine {
    /// The models that share it.
    pub models: Vec<Arc<str>>,
    /// Sequences that run before the node calls itself busy.
    pub busy_at: u32,
    /// Sequences that run together at most.
    pub batch_max: u32,
    /// Queries that may wait: as many as run together, one batch computes while one waits, so the engine never idles between
    /// them; or none, in front of a service that counts requests.
    pub queue_max: u32,
}

/// What routing needs to know of a query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Which query.
    pub id: QueryId,
    /// Which try at it.
    pub attempt: Attempt,
    /// The model; empty: any.
    pub model: Arc<str>,
    /// Goes there when it has room.
    pub prefer: Option<NodeName>,
    /// Nodes that it came through.
    pub hops: u32,
    /// The child that let the last attempt vanish: gets this one only if nobody else can have it.
    pub avoid: Option<NodeName>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The way to the root opened or closed: without it the node can't deliver, so it takes nothing.
    Connected(bool),
    /// A child attached.
    ChildJoined {
        /// Its name.
        child: NodeName,
    },
    /// A child's link ended.
    ChildLeft {
        /// Its name.
        child: NodeName,
        /// It said so before, and reads what is on its way; else it broke.
        orderly: bool,
    },
    /// A child said what its subtree can take.
    ChildReported {
        /// Its name.
        child: NodeName,
        /// Queries that had come down its link by then.
        received: u64,
        /// Room per set of models that share an engine.
        capacity: Vec<Capacity>,
        /// How it served until then.
        service: Service,
    },
    /// The node is about to leave: it takes nothing more, and gives back what waits.
    Draining,
    /// Time has passed.
    Tick,
    /// A query came from the parent (or, at the root, from the ledger).
    Arrived(Ticket),
    /// The engine can run that many sequences together, whatever its batch: its keys allow no more.
    Limited {
        /// Those that run now included.
        slots: u32,
    },
    /// A sequence left the engine.
    Ended {
        /// Which.
        id: QueryId,
    },
    /// The root wants nothing more of an attempt.
    Cancelled {
        /// Which query.
        id: QueryId,
        /// This attempt at it, or any older one.
        attempt: Attempt,
    },
    /// The root wants an attempt back, if it has not started.
    Recalled {
        /// Which query.
        id: QueryId,
        /// This attempt at it.
        attempt: Attempt,
    },
}

/// Counts of a child's subtree since its uppermost node started; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Time that sequences spent in engines, in microseconds, summed over sequences.
    pub busy_us: u64,
    /// Tokens that were generated.
    pub tokens: u64,
    /// Queries that the child's own engine answered.
    pub answered: u64,
    /// Queries that it failed with.
    pub failed: u64,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Give the query to the engine.
    Execute {
        /// Which.
        id: QueryId,
    },
    /// Keep the query until the engine frees.
    Queue {
        /// Which.
        id: QueryId,
    },
    /// Send the query down.
    Forward {
        /// Which.
        id: QueryId,
        /// To whom.
        child: NodeName,
        /// Why this one.
        choice: Choice,
    },
    /// Tell the root to send the query elsewhere.
    Refuse {
        /// Which.
        id: QueryId,
        /// Why.
        because: Because,
    },
    /// Hand a queued query back to the root.
    Return {
        /// Which.
        id: QueryId,
    },
    /// Take a running query from the engine.
    Abort {
        /// Which.
        id: QueryId,
    },
    /// Forget a queued query.
    Drop {
        /// Which.
        id: QueryId,
    },
    /// Note that a child is given more or less from now on.
    Judge {
        /// Which.
        child: NodeName,
        /// How it was judged.
        verdict: Verdict,
    },
    /// Tell the parent what the subtree can take now.
    Report {
        /// Per set of models that share an engine.
        capacity: Vec<Capacity>,
        /// Room appeared or vanished: not to be coalesced with later changes.
        urgent: bool,
    },
}

/// Why a child was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// The query prefers it.
    Preferred,
    /// Its subtree has room.
    Room,
    /// No child has room, and it was its turn.
    Turn,
}

/// Why a query was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Because {
    /// Queue full, and nobody to pass it to.
    Busy,
    /// Neither the node nor any child serves the model.
    Model,
    /// The node has no way to the root.
    Disconnected,
    /// It came through more nodes than any tree is deep.
    Hops,
    /// The engine has not yet let go of an older attempt at it.
    Held,
    /// The node is about to leave.
    Leaving,
}

//! What the ledger is told and what it says.

use std::sync::Arc;

use banyan_proto::{Attempt, NodeName, QueryId};
use serde::{Deserialize, Serialize};

use crate::{capacity::Capacity, config::LaneLimits, router::Ticket};

/// What a ledger is built from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The number of the root's reign.
    pub epoch: u64,
    /// Classic routing: sends whatever comes at once, with no look at room, and recalls nothing.
    pub eager: bool,
    /// What may wait.
    pub lanes: LaneLimits,
}

/// A query as it comes from the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its id.
    pub id: QueryId,
    /// Whose lane it waits in.
    pub owner: Arc<str>,
    /// The model; empty: any.
    pub model: Arc<str>,
    /// Higher goes first within the owner's lane.
    pub priority: i32,
    /// The node that it would rather run on.
    pub prefer: Option<NodeName>,
    /// An upper bound of its tokens: what its owner is charged.
    pub tokens_max: u32,
    /// Of its payload.
    pub bytes: usize,
    /// Time until its deadline, in microseconds.
    pub time_us: u64,
    /// Comes back at the time that a refusal named: a place is kept for it.
    pub returning: bool,
    /// Until its first token it fails rather than wait.
    pub impatient: bool,
}

/// Who keeps a query: a node, by one life of its Deliver stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub name: NodeName,
    /// The stream's number.
    pub stream: u64,
}

/// A node on a query's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The node.
    pub node: String,
    /// The wire's number of the reason (`v1::Reason`).
    pub reason: i32,
    /// How long the query was kept there, in microseconds.
    pub spent_us: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A query came.
    Asked(Asked),
    /// A query came that was accepted before, perhaps by another root.
    AskedAgain {
        /// The query.
        asked: Asked,
        /// The tokens that its client has.
        delivered: Vec<u32>,
    },
    /// The root's reign has another number: its key was lost, and taken again.
    Reigned {
        /// The number.
        epoch: u64,
    },
    /// A node holds an attempt, perhaps since an earlier reign, and waits to be told where to go on.
    Claimed {
        /// Which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
        /// Running or ended, else queued.
        running: bool,
        /// The first position that the node can deliver.
        from: u32,
        /// The way that it came.
        trail: Vec<Hop>,
    },
    /// Nobody reads the answer now, and somebody may attach.
    Detached {
        /// Of which query.
        id: QueryId,
    },
    /// Somebody reads the answer again.
    Attached {
        /// Of which query.
        id: QueryId,
    },
    /// What the tree can take.
    Room(Vec<Capacity>),
    /// A node keeps a query.
    Held {
        /// Which.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
        /// Running, else queued.
        running: bool,
        /// The way that it came.
        trail: Vec<Hop>,
    },
    /// A prefill chunk was computed.
    Progressed {
        /// Of which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
    },
    /// Tokens came.
    Generated {
        /// Of which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
        /// Of the first of them.
        position: u32,
        /// Their ids.
        tokens: Vec<u32>,
    },
    /// An answer is complete.
    Finished {
        /// Of which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
    },
    /// A node won't run a query.
    Refused {
        /// Which.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
        /// Whose fault it is.
        fault: Fault,
        /// The way that it came.
        trail: Vec<Hop>,
    },
    /// The root's own router found no child for it.
    Bounced {
        /// Which.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
    },
    /// A node handed a query back.
    Returned {
        /// Which.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Who.
        holder: Holder,
    },
    /// A node's Deliver stream ended.
    HolderLost {
        /// The stream's number.
        stream: u64,
    },
    /// The child that an attempt was sent to is gone.
    Vanished {
        /// Which query; matters only if nobody holds it yet.
        id: QueryId,
    },
    /// Nobody reads the answer any more.
    ClientLeft {
        /// Of which query.
        id: QueryId,
    },
    /// Time has passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Send an attempt down the tree.
    Send {
        /// What the router needs of it.
        ticket: Ticket,
        /// Why now.
        why: Why,
    },
    /// Pass the tokens at hand to the client.
    Deliver {
        /// Of which query.
        id: QueryId,
    },
    /// Pass the end at hand to the client.
    Finish {
        /// Of which query.
        id: QueryId,
    },
    /// Tell the client that there will be no (further) answer.
    Fail {
        /// To which query.
        id: QueryId,
        /// Why.
        failure: Failure,
    },
    /// Tell the client where the query lies.
    Placed {
        /// Which.
        id: QueryId,
        /// Where; `None` at the root.
        node: Option<NodeName>,
        /// Running, else waiting.
        running: bool,
        /// Which one it will be to be served, while it waits at the root; 0: not known.
        place: u32,
    },
    /// Let a query wait although there may be room: too much is being sent again.
    Pause {
        /// Which.
        id: QueryId,
    },
    /// Tell a node to stop an attempt.
    Cancel {
        /// The node's stream.
        stream: u64,
        /// Which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
    },
    /// Tell a node from where on to deliver an attempt that it holds.
    Resume {
        /// The node's stream.
        stream: u64,
        /// Which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
        /// Of the next token that the client needs.
        position: u32,
    },
    /// Ask a node for a query that has not started.
    Recall {
        /// The node's stream.
        stream: u64,
        /// Which query.
        id: QueryId,
        /// Which try.
        attempt: Attempt,
    },
}

/// Why a node won't run a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It has no place for it.
    Busy,
    /// The query can't be served anywhere.
    Query,
    /// The engine failed with the query in it, perhaps because of a neighbour.
    Engine,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// It was not let in.
    Overloaded {
        /// For lack of what.
        because: Overload,
        /// When to ask again, in milliseconds.
        retry_after_ms: u64,
        /// Whether a place is kept until then; else more are before it than get one in that time.
        kept: bool,
    },
    /// It waited, and would not have been served before its deadline.
    Hopeless {
        /// How long it would still have waited, in milliseconds.
        wait_ms: u64,
    },
    /// No node serves the model.
    UnknownModel {
        /// Those that are served.
        served: Vec<Arc<str>>,
    },
    /// It would have to wait, and would rather not.
    NoPlace,
    /// The nodes that served the model are away.
    Unserved,
    /// Its time is over.
    Deadline,
    /// Nodes died or failed while they ran it.
    Poison,
    /// A provider had begun its answer, which nobody can continue.
    Broken,
    /// Its client left, and nobody came back for it.
    Abandoned,
    /// The holder said why, in the message at hand.
    Holder,
}

/// Why a query is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overload {
    /// Its owner's share of the lanes is used up, or all of them.
    Lanes,
    /// Live queries take all the memory that the root gives them.
    Memory,
    /// What is ahead of it takes longer than it allows.
    Deadline {
        /// How long, in milliseconds.
        wait_ms: u64,
    },
}

/// Why an attempt was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The first.
    New,
    /// The one before was taken out of a queue because room appeared elsewhere.
    Recalled,
    /// The holder of the one before left, and handed it back.
    Returned,
    /// The holder of the one before was lost, or nobody said to hold it.
    Lost,
    /// The one before was refused.
    Refused,
    /// A node held it since an earlier root's reign, so it was not sent.
    Adopted,
}

/// Where a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In a lane at the root.
    Waiting,
    /// On its way down.
    Sent,
    /// In a node's queue.
    Queued,
    /// In a node's engine.
    Running,
    /// Ended.
    Ended,
}

/// How an attempt, or a query, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With an answer.
    Finished,
    /// With its holder.
    Lost,
    /// Handed back.
    Returned,
    /// Refused by a node, or for overload.
    Refused,
    /// Cancelled by the client.
    Cancelled,
    /// Its time was over.
    Expired,
}

/// One attempt at a query; times in microseconds since the root accepted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Counted from 1.
    pub number: u32,
    /// Why it was sent.
    pub why: Why,
    /// Who held it.
    pub holder: Option<NodeName>,
    /// When it left the root.
    pub sent_us: u64,
    /// When a node said to hold it.
    pub held_us: Option<u64>,
    /// When it began to run.
    pub started_us: Option<u64>,
    /// When it ended.
    pub ended_us: Option<u64>,
    /// Through whom it came.
    pub trail: Vec<Hop>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// The way that a query took; times in microseconds since the root accepted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The query.
    pub id: QueryId,
    /// Whose it is.
    pub owner: Arc<str>,
    /// What it asked for.
    pub model: Arc<str>,
    /// Where it is.
    pub state: State,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// In order.
    pub tries: Vec<Try>,
    /// Delivered tokens.
    pub tokens: u32,
    /// When the first one came.
    pub first_token_us: Option<u64>,
    /// When it ended.
    pub ended_us: Option<u64>,
    /// Why there is no answer.
    pub error: Option<String>,
}

impl Way {
    /// The way of a query that was not let in.
    pub(crate) fn refused(asked: &Asked, error: &str) -> Way {
        Way {
            id: asked.id,
            owner: asked.owner.clone(),
            model: asked.model.clone(),
            state: State::Ended,
            outcome: Some(Outcome::Refused),
            tries: Vec::new(),
            tokens: 0,
            first_token_us: None,
            ended_us: Some(0),
            error: Some(error.to_owned()),
        }
    }
}

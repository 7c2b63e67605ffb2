//! A node as the world sees it: a process that lives or not, around the production node without its tasks.

use std::collections::{BTreeMap, VecDeque};

use banyan_engine::{Step, fake};
use banyan_node::{
    Config,
    bare::{Bare, Search, search::Candidate},
};
use banyan_proto::{NodeName, v1};

use super::engine::Virtual;

/// What a node is started with, in each of its lives.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: NodeName,
    /// The wanted parent, by its number; none for a root.
    pub parent: Option<usize>,
    /// Its engine; none for a root.
    pub engine: Option<fake::Options>,
    /// Sequences that it runs before it calls itself busy; by default what its engine batches.
    pub busy_at: Option<u32>,
}

/// A node's place in the world.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: Config,
    pub(super) engine: Option<fake::Options>,
    /// Counted: what was meant for an earlier life does not reach a later one.
    pub(super) life: u32,
    pub(super) body: Option<Body>,
    /// What arrived and waits for the node's task.
    pub(super) inbox: VecDeque<Input>,
    /// Whether the task is about to run.
    pub(super) waking: bool,
    /// Until when the task computes.
    pub(super) busy_until: u64,
    /// SIGSTOP.
    pub(super) paused: bool,
    /// Nodes on different islands do not reach each other.
    pub(super) island: u32,
    /// How much slower than others its engine is.
    pub(super) slowness: f64,
    /// Since when it could run a query and runs none more.
    pub(super) room_since: Option<u64>,
    /// Inputs that its task handled.
    pub(super) handled: u64,
}

/// A life.
pub(super) struct Body {
    pub(super) core: Bare,
    pub(super) engine: Option<Virtual>,
    pub(super) search: Search,
    pub(super) wanted: Option<NodeName>,
    pub(super) uplink: Uplink,
    /// The root that the ancestry names, and its reign.
    pub(super) root: Option<(u32, u64)>,
    pub(super) deliver: Deliver,
    pub(super) report_at: Option<u64>,
    pub(super) children: BTreeMap<u32, NodeName>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("uplink", &self.uplink).field("deliver", &self.deliver).finish_non_exhaustive()
    }
}

/// The way up. With neither a link nor somebody dialled it pauses between two rounds.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    pub(super) link: Option<Held>,
    /// Beside the link, where there is one, to take over from it.
    pub(super) dialling: Option<Dialling>,
    /// Links that others took over from, until their parents have ended them.
    pub(super) reading_out: Vec<u32>,
    /// Counts what was begun with `dialling`.
    pub(super) turn: u32,
}

/// The link to the parent.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parent: NodeName,
    pub(super) tie: u32,
    pub(super) rootless_since: Option<u64>,
    /// The parent said so, and so many rounds have found nobody else.
    pub(super) leaving: Option<u32>,
}

/// One after the other is tried.
#[derive(Debug)]
pub(super) struct Dialling {
    /// Who is tried now, and by which link; none before the first one.
    pub(super) now: Option<(Candidate, u32)>,
    pub(super) rest: VecDeque<Candidate>,
    pub(super) turn: u32,
    /// Whom the round began with, and when.
    pub(super) first: Option<Candidate>,
    pub(super) begun: u64,
}

/// The stream to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deliver {
    Idle,
    Pausing,
    Dialling(u32),
    Open(u32),
}

/// What a node's task is told.
#[derive(Debug)]
pub(super) enum Input {
    // ---- As a parent
    Hello {
        tie: u32,
    },
    Up {
        tie: u32,
        up: Box<v1::Up>,
    },
    UpEnd {
        tie: u32,
    },
    // ---- As a child
    Round,
    Declined {
        tie: u32,
    },
    AttachTimeout {
        tie: u32,
    },
    Down {
        tie: u32,
        down: v1::Down,
    },
    DownEnd {
        tie: u32,
    },
    Patience {
        tie: u32,
        since: u64,
    },
    Return {
        tie: u32,
    },
    /// A pause before dialling is over.
    Begin {
        turn: u32,
    },
    Drain {
        deadline: u64,
    },
    Wanted(NodeName),
    // ---- As a holder
    Dial,
    Unwelcome {
        stream: u32,
    },
    Control {
        stream: u32,
        control: v1::Control,
    },
    ControlEnd {
        stream: u32,
    },
    Step(Box<Step>),
    // ---- As the root
    Join {
        stream: u32,
    },
    Delivery {
        stream: u32,
        delivery: v1::Delivery,
    },
    DeliveryEnd {
        stream: u32,
    },
    Ask {
        client: u32,
    },
    Leave {
        client: u32,
    },
    Tick,
    /// It is time to report.
    Report,
}

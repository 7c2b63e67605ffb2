//! A node's task without the task: the same state, driven by whoever brings time, wires and engine.
//!
//! The simulator in `tests/` drives ten thousand of them under virtual time. What a running node reads from its sockets is
//! told here by the same names, and what the node says leaves by the channels that its links were given.

use std::sync::{Arc, atomic::AtomicU64};

use banyan_engine::{Engine, Step};
use banyan_proto::{NodeName, v1};
use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    config::Config,
    core::{Ask, Attached, ChildLink, Core, HolderLink, Input, ToHolder},
    journal::Journal,
};
pub use crate::{
    core::TICK,
    deliver::{RECONNECT_PAUSE, WELCOME_TIMEOUT},
    uplink::search::{self, Search},
};

/// Decisions that are kept for `log`: nobody reads them here.
const JOURNAL: usize = 1;

/// A node without tasks and sockets. See the module.
pub struct Bare {
    core: Core,
}

/// A node's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Sequences in its engine.
    pub running: usize,
    /// Queries in its queue.
    pub queued: usize,
    /// Whether a query that came now would run here.
    pub has_room: bool,
    /// Whether the tree above it, as it knows, ends at a root.
    pub rooted: bool,
    /// Whether it can deliver.
    pub connected: bool,
    /// Queries of which it keeps anything.
    pub kept: usize,
    /// At the root: queries that wait, and all that are not ended.
    pub waiting: usize,
    /// Queries that are not ended.
    pub live: usize,
    /// Clients that the root remembers.
    pub clients: usize,
    /// Streams that the root remembers.
    pub holders: usize,
    /// Children.
    pub children: usize,
}

impl Bare {
    /// An idle node. A root has no engine and the number of its reign.
    pub fn new(config: &Config, engine: Option<Engine>, epoch: Option<u64>, now: Instant) -> Bare {
        Bare { core: Core::new(config, engine, epoch, now, Journal::keeping(JOURNAL)) }
    }

    /// Time passes. What is told next happens then.
    pub fn at(&mut self, now: Instant) {
        self.core.now = now;
    }

    /// A child says hello; what is for it goes to `to`. Every link has another number.
    pub fn child_attached(&mut self, name: NodeName, address: String, link: u64, to: mpsc::Sender<v1::Down>) {
        self.core.input(Input::ChildAttached(ChildLink { name, address, link, to }));
    }

    /// A child says something on its link.
    pub fn child_said(&mut self, child: &NodeName, link: u64, up: v1::Up) {
        if let Some(input) = Input::of_child(child, link, up) {
            self.core.input(input);
        }
    }

    /// A child's link has ended.
    pub fn child_gone(&mut self, child: NodeName, link: u64) {
        self.core.input(Input::ChildGone { child, link });
    }

    /// The node found a parent; what is for it goes to `to`.
    pub fn attached(&mut self, parent: NodeName, link: u64, ancestry: v1::Ancestry, to: mpsc::Sender<v1::Up>) {
        self.core.input(Input::Attached(Attached { link, parent, ancestry, to }));
    }

    /// The parent's way to the root is another one.
    pub fn ancestry(&mut self, link: u64, ancestry: v1::Ancestry) {
        self.core.input(Input::Ancestry { link, ancestry });
    }

    /// A query comes down the link, encoded.
    pub fn query(&mut self, link: u64, query: Bytes) {
        self.core.input(Input::Query { link, query });
    }

    /// The link to the parent has ended.
    pub fn detached(&mut self, link: u64) {
        self.core.input(Input::Detached { link });
    }

    /// The way to the root is open; deliveries go to `to`.
    pub fn root_connected(&mut self, to: mpsc::Sender<v1::Delivery>) {
        self.core.input(Input::RootConnected { to, relayed: false });
    }

    /// The root says something on the Deliver stream.
    pub fn root_said(&mut self, control: v1::Control) {
        self.core.input(Input::Control(control));
    }

    /// The Deliver stream has ended.
    pub fn root_lost(&mut self) {
        self.core.input(Input::RootLost);
    }

    /// At the root: a node opened its Deliver stream; controls go to `to`. Every stream has another number.
    pub fn holder_joined(&mut self, name: NodeName, stream: u64, to: mpsc::Sender<v1::Control>) {
        self.core.input(Input::HolderJoined(HolderLink { name, stream, to: ToHolder::Stream(to) }));
    }

    /// At the root: a node delivers.
    pub fn holder_said(&mut self, stream: u64, delivery: v1::Delivery) {
        if let Some(input) = Input::of_holder(stream, delivery) {
            self.core.input(input);
        }
    }

    /// At the root: a node's Deliver stream has ended.
    pub fn holder_gone(&mut self, stream: u64) {
        self.core.input(Input::HolderGone { stream });
    }

    /// At the root: a client asks; answers go to `to`. `serial` tells the asks of one id apart, and `read` counts the answers
    /// that were read.
    pub fn ask(&mut self, question: v1::Question, serial: u64, to: mpsc::UnboundedSender<v1::Answer>, read: Arc<AtomicU64>) {
        self.core.input(Input::Ask(Box::new(Ask { question, serial, to, read, _memory: None })));
    }

    /// At the root: a client went away.
    pub fn client_left(&mut self, id: banyan_proto::QueryId, serial: u64) {
        self.core.client_left(id, serial);
    }

    /// The engine has news.
    pub fn step(&mut self, step: Step) {
        self.core.step(step);
    }

    /// Every [`TICK`], at the root and wherever there are children.
    pub fn tick(&mut self) {
        self.core.tick();
    }

    /// What was told together is done; what it led to leaves. True when the node was told to leave and has nothing left to do:
    /// its last words are said.
    pub fn flush(&mut self) -> bool {
        self.core.flush();
        let leaves = self.core.leaves();
        if leaves {
            self.core.hand_over();
        }
        leaves
    }

    /// When it wants to be flushed, if it is told nothing before: to report to its parent, or to leave.
    pub fn due(&self) -> Option<Instant> {
        self.core.report_at().into_iter().chain(self.core.leave_at()).min()
    }

    /// The node is to leave; what runs then is handed over.
    pub fn drain(&mut self, until: Instant) {
        self.core.drain(until);
    }

    /// The figures as they are.
    pub fn gauges(&self) -> Gauges {
        self.core.gauges()
    }

    /// Whether a query's engine died or failed with it, so that it may have to wait for others of the kind.
    pub fn is_suspect(&self, id: &banyan_proto::QueryId) -> bool {
        self.core.is_suspect(id)
    }
}

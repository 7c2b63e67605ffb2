//! The world: all nodes, links and clients, and the loop that lets one thing happen after the other.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use banyan_node::{
    Config,
    bare::{Bare, Search, TICK},
};
use banyan_proto::NodeName;
use tokio::time::Instant;

use super::{
    agenda::Agenda,
    client::{Client, Wish},
    engine::{Next, Virtual},
    figures::Figures,
    link::{Links, Stream, Tie},
    load::Load,
    node::{Body, Deliver, Input, Node, Plan, Uplink},
    pipe::{Bells, Wire},
    registry::Registry,
    setup::Setup,
    trace::Trace,
};
use crate::random::Random;

/// The root, in every world.
pub const ROOT: usize = 0;
/// Inputs that a task handles before it flushes, as in production.
const BATCH: usize = 256;
/// Messages to one peer that wait for its stream, as in production.
pub(super) const OUTBOX: usize = 8192;
pub(super) const MILLISECOND: u64 = 1_000_000;
/// A second of virtual time.
pub const SECOND: u64 = 1000 * MILLISECOND;

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// Something arrives at a node.
    Input { node: u32, life: u32, input: Input },
    /// A node's task runs.
    Wake { node: u32, life: u32 },
    /// An engine's step is computed.
    Computed { node: u32, life: u32, nanos: u64 },
    /// Pings of a stopped peer have stayed away.
    Silent { node: u32, life: u32, end: Input },
    /// A node's process is up, and registers.
    Start { node: u32, life: u32 },
    /// A dead node's lease ends.
    Expire { node: u32, life: u32 },
    /// The watches show a change.
    Seen,
    /// A load's next question.
    Question { load: u32 },
    /// A question that was planned.
    Wish(Box<Wish>),
    /// A client whose root was lost looks for the next one.
    Again { client: u32 },
    /// What a client is told arrives there.
    Answer { client: u32 },
    /// Somebody looks whether a query waits while a node idles.
    Look,
}

/// Everything. See the module.
pub struct World {
    pub(super) setup: Setup,
    pub(super) agenda: Agenda<Event>,
    pub(super) random: Random,
    pub(super) network: Random,
    pub(super) nodes: Vec<Node>,
    pub(super) ties: Links<Tie>,
    pub(super) streams: Links<Stream>,
    pub(super) clients: Vec<Client>,
    /// Clients whose answers have not ended, roughly in the order in which they asked.
    pub(super) live: Vec<u32>,
    pub(super) loads: Vec<Load>,
    pub(super) registry: Registry,
    pub(super) by_name: HashMap<String, u32>,
    pub(super) severed: Vec<(u32, u32)>,
    pub(super) tree: NodeName,
    pub(super) trace: Trace,
    /// What the world counted.
    pub figures: Figures,
    pub(super) broken: Vec<String>,
    pub(super) bells: Bells,
    pub(super) rung: Vec<Wire>,
    epoch: Instant,
}

impl World {
    /// A world with a root and nodes, which start at time 0 and on.
    pub fn new(setup: Setup, plans: &[Plan]) -> World {
        let mut random = Random::new(setup.seed);
        let agenda = Agenda::new(random.fork());
        let network = random.fork();
        let trace = Trace::new(setup.whole_trace);
        let mut world = World {
            setup,
            agenda,
            random,
            network,
            nodes: Vec::new(),
            ties: Links::default(),
            streams: Links::default(),
            clients: Vec::new(),
            live: Vec::new(),
            loads: Vec::new(),
            registry: Registry::default(),
            by_name: HashMap::new(),
            severed: Vec::new(),
            tree: "main".parse().expect("a valid name"),
            trace,
            figures: Figures::default(),
            broken: Vec::new(),
            bells: Bells::default(),
            rung: Vec::new(),
            // Only differences of it are ever looked at.
            epoch: Instant::now(),
        };
        for plan in plans {
            world.add(plan);
        }
        world.agenda.after(super::checks::LOOK, Event::Look);
        world
    }

    /// Adds a node, which starts now.
    pub fn add(&mut self, plan: &Plan) -> usize {
        let number = self.nodes.len();
        self.by_name.insert(plan.name.to_string(), number as u32);
        let base = match plan.parent {
            Some(parent) => Config::child(plan.name.clone(), self.nodes[parent].config.name.clone()),
            None => Config::root(plan.name.clone()),
        };
        let config = Config { routing: self.setup.routing, lanes: self.setup.lanes, busy_at: plan.busy_at, ..base };
        self.nodes.push(Node {
            config,
            engine: plan.engine.clone(),
            life: 0,
            body: None,
            inbox: VecDeque::new(),
            waking: false,
            busy_until: 0,
            paused: false,
            island: 0,
            slowness: 1.0,
            room_since: None,
            handled: 0,
        });
        self.agenda.after(0, Event::Start { node: number as u32, life: 0 });
        number
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.agenda.now()
    }

    /// Nodes that there ever were, the root among them.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node's name.
    pub fn name(&self, node: usize) -> &NodeName {
        &self.nodes[node].config.name
    }

    /// The nodes that live, without the root.
    pub fn alive(&self) -> Vec<usize> {
        (1..self.nodes.len()).filter(|&node| self.nodes[node].body.is_some()).collect()
    }

    /// The seed, for whoever says what went wrong.
    pub fn seed(&self) -> u64 {
        self.setup.seed
    }

    /// Stands for everything that happened.
    pub fn trace(&self) -> u64 {
        self.trace.hash()
    }

    /// Promises that were broken, in the order in which they were.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Lets time pass.
    pub fn run_for(&mut self, nanos: u64) {
        let end = self.now().saturating_add(nanos);
        while let Some(event) = self.agenda.next_until(end) {
            self.happen(event);
        }
    }

    /// Lets time pass until something is so; false when it is not in that time.
    pub fn run_until(&mut self, nanos: u64, so: impl Fn(&World) -> bool) -> bool {
        let end = self.now().saturating_add(nanos);
        loop {
            if so(self) {
                return true;
            }
            if self.now() >= end {
                return false;
            }
            self.run_for((100 * MILLISECOND).min(end - self.now()));
        }
    }

    fn happen(&mut self, event: Event) {
        self.figures.events += 1;
        match event {
            Event::Input { node, life, input } => self.arrive(node, life, input),
            Event::Wake { node, life } => self.wake(node, life),
            Event::Computed { node, life, nanos } => self.computed(node, life, nanos),
            Event::Silent { node, life, end } => self.found_silent(node, life, end),
            Event::Start { node, life } => self.start(node, life),
            Event::Expire { node, life } => self.expire(node, life),
            Event::Seen => self.registry.show(),
            Event::Question { load } => self.question(load),
            Event::Wish(wish) => {
                self.ask_once(*wish);
            }
            Event::Again { client } => self.ask_again(client),
            Event::Answer { client } => self.read(client),
            Event::Look => self.look(),
        }
    }

    // ---- Tasks

    /// What arrives waits for the task, which runs a little later, or when it is done with what came before.
    pub(super) fn arrive(&mut self, node: u32, life: u32, input: Input) {
        let now = self.now();
        let Node { body, life: current, inbox, waking, busy_until, paused, .. } = &mut self.nodes[node as usize];
        if *current != life || body.is_none() {
            return self.undeliverable(input);
        }
        inbox.push_back(input);
        if !*paused && !std::mem::replace(waking, true) {
            let at = (now + self.setup.wake).max(*busy_until);
            self.agenda.at(at, Event::Wake { node, life });
        }
    }

    /// A task that computes nothing else runs: as many inputs as there are, then everything leaves together.
    fn wake(&mut self, node: u32, life: u32) {
        let now = self.now();
        let at = self.epoch + Duration::from_nanos(now);
        let this = &mut self.nodes[node as usize];
        if this.life != life || this.paused {
            return;
        }
        this.waking = false;
        let Some(body) = &mut this.body else { return };
        body.core.at(at);
        let count = this.inbox.len().min(BATCH);
        for _ in 0..count {
            let Some(input) = self.nodes[node as usize].inbox.pop_front() else { break };
            self.trace.input(now, node, &input);
            self.handle(node, input);
        }
        self.figures.handled += count as u64;
        let this = &mut self.nodes[node as usize];
        this.handled += count as u64;
        this.busy_until = now + count as u64 * self.setup.handling;
        if !this.inbox.is_empty() {
            this.waking = true;
            let at = this.busy_until;
            self.agenda.at(at, Event::Wake { node, life });
        }
        let mut leaves = false;
        if let Some(body) = &mut this.body {
            leaves = body.core.flush();
            let due = body.core.due().map(|at| (at - self.epoch).as_nanos() as u64);
            if due != body.report_at {
                body.report_at = due;
                if let Some(due) = due {
                    self.agenda.at(due, Event::Input { node, life, input: Input::Report });
                }
            }
        }
        self.compute(node);
        self.pump();
        if leaves {
            self.depart(node as usize);
        }
    }

    fn handle(&mut self, node: u32, input: Input) {
        match input {
            Input::Hello { .. } | Input::Up { .. } | Input::UpEnd { .. } => self.as_parent(node, input),
            Input::Round
            | Input::Declined { .. }
            | Input::AttachTimeout { .. }
            | Input::Down { .. }
            | Input::DownEnd { .. }
            | Input::Patience { .. }
            | Input::Return { .. }
            | Input::Begin { .. }
            | Input::Wanted(_) => self.as_child(node, input),
            Input::Dial | Input::Unwelcome { .. } | Input::Control { .. } | Input::ControlEnd { .. } => {
                self.as_holder(node, input);
            }
            Input::Join { .. } | Input::Delivery { .. } | Input::DeliveryEnd { .. } => self.as_root(node, input),
            Input::Step(step) => {
                if let Some(body) = &mut self.nodes[node as usize].body {
                    body.core.step(*step);
                }
            }
            Input::Ask { client } => self.ask(node, client),
            Input::Leave { client } => {
                let id = self.clients[client as usize].id;
                if let Some(body) = &mut self.nodes[node as usize].body {
                    body.core.client_left(id, client.into());
                }
            }
            Input::Tick => {
                if let Some(body) = &mut self.nodes[node as usize].body {
                    body.core.tick();
                }
                let life = self.nodes[node as usize].life;
                self.agenda.after(TICK.as_nanos() as u64, Event::Input { node, life, input: Input::Tick });
            }
            // Flushing sends it.
            Input::Report => {}
            Input::Drain { deadline } => {
                let until = self.epoch + Duration::from_nanos(deadline);
                if let Some(body) = &mut self.nodes[node as usize].body {
                    body.core.drain(until);
                }
            }
        }
    }

    // ---- Lives

    fn start(&mut self, node: u32, life: u32) {
        let this = &self.nodes[node as usize];
        if this.life != life || this.body.is_some() {
            return;
        }
        let (name, parent) = (this.config.name.clone(), this.config.parent.clone());
        if self.registry.holds(&name) {
            // An earlier life's lease has not ended; it does so soon, and then it is the turn of this one.
            return self.agenda.after(100 * MILLISECOND, Event::Start { node, life });
        }
        let epoch = match self.registry.register(&name, parent.as_ref(), &self.tree) {
            Ok(revision) => {
                self.agenda.after(self.setup.watch, Event::Seen);
                parent.is_none().then_some(revision)
            }
            // The parent is not there yet.
            Err(_) => return self.agenda.after(100 * MILLISECOND, Event::Start { node, life }),
        };
        let now = self.epoch + Duration::from_nanos(self.now());
        let this = &mut self.nodes[node as usize];
        let (handle, mut engine) = this.engine.clone().map(Virtual::new).unzip();
        if let Some(engine) = &mut engine {
            engine.slowness = this.slowness;
        }
        this.body = Some(Body {
            core: Bare::new(&this.config, handle, epoch, now),
            engine,
            search: Search::new(name, self.tree.clone()),
            wanted: parent,
            uplink: Uplink::default(),
            root: None,
            deliver: Deliver::Idle,
            report_at: None,
            children: Default::default(),
        });
        let first = if epoch.is_some() { Input::Tick } else { Input::Round };
        self.agenda.after(0, Event::Input { node, life, input: first });
    }

    fn expire(&mut self, node: u32, life: u32) {
        let this = &self.nodes[node as usize];
        if this.life == life && this.body.is_some() {
            return;
        }
        let name = this.config.name.clone();
        if self.registry.holds(&name) {
            self.registry.remove(&name);
            self.agenda.after(self.setup.watch, Event::Seen);
        }
    }

    // ---- Engines

    fn compute(&mut self, node: u32) {
        let now = self.now();
        let this = &mut self.nodes[node as usize];
        let life = this.life;
        let Some(engine) = this.body.as_mut().and_then(|body| body.engine.as_mut()).filter(|engine| !engine.computes()) else {
            return;
        };
        loop {
            match engine.begin() {
                Next::Idles => return,
                Next::Says(step) => {
                    self.agenda.at(now, Event::Input { node, life, input: Input::Step(Box::new(step)) });
                }
                Next::Computes(nanos) => return self.agenda.at(now + nanos, Event::Computed { node, life, nanos }),
            }
        }
    }

    fn computed(&mut self, node: u32, life: u32, nanos: u64) {
        let this = &mut self.nodes[node as usize];
        if this.life != life {
            return;
        }
        if this.paused {
            // A stopped process computes nothing; the step ends after it goes on.
            return self.agenda.after(10 * MILLISECOND, Event::Computed { node, life, nanos });
        }
        let Some(engine) = this.body.as_mut().and_then(|body| body.engine.as_mut()) else { return };
        let step = engine.end(nanos);
        let waits = engine.waits_after(&step);
        self.arrive(node, life, Input::Step(Box::new(step)));
        // Else the node's task has it go on.
        if !waits {
            self.compute(node);
        }
    }

    pub(super) fn break_promise(&mut self, what: String) {
        // The first ones say enough.
        if self.broken.len() < 20 {
            let seconds = self.now() as f64 / SECOND as f64;
            self.broken.push(format!("at {seconds:.6} s: {what}"));
        }
    }
}

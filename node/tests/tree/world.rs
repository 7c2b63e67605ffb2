//! The tree: nodes with their routers, the root with its ledger, clients, and all that is on its way between them.

mod harm;
mod rest;
mod wires;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use banyan_node::{
    LaneLimits, Routing,
    capacity::{Capacity, serves},
    ledger::{self, Asked, Failure, Holder, Ledger},
    router::{self, Because, Router, Service, Ticket},
};
use banyan_proto::{Attempt, NodeName, QueryId};

use super::{MODELS, Step};

/// What a node sends to its parent, or its link's end.
enum Up {
    Report { received: u64, capacity: Vec<Capacity>, service: Service },
    Gone,
}

/// What a node sends to the root, or its stream's end.
enum Delivery {
    Event(ledger::Event),
    Gone { stream: u64 },
}

enum Control {
    Cancel(QueryId, Attempt),
    Recall(QueryId, Attempt),
    Resume(QueryId, Attempt, u32),
}

/// What the root sends to an API.
enum Answer {
    Token(u32, u32),
    End,
    Failed,
}

/// Something that is on its way.
#[derive(Clone, Copy)]
enum Channel {
    Node(usize, u8),
    /// To the API that a client asked.
    Answer(QueryId),
    /// From that API to a new root.
    Ask(QueryId),
}

struct Down {
    /// The link that it came by.
    link: u32,
    ticket: Ticket,
    /// Where the answer goes on.
    position: u32,
}

#[derive(Debug)]
struct Kept {
    attempt: Attempt,
    /// What it can deliver, and what it has computed.
    from: u32,
    position: u32,
    running: bool,
    aborted: bool,
    /// The root has yet to say where to go on.
    waits: bool,
    /// It has left the engine, and the root was not told.
    ended: bool,
}

struct Sim {
    name: NodeName,
    model: &'static str,
    parent: usize,
    router: Router,
    alive: bool,
    draining: bool,
    /// Counts the links to parents.
    link: u32,
    /// Of its Deliver stream.
    stream: u64,
    received: u64,
    service: Service,
    kept: BTreeMap<QueryId, Kept>,
    report_due: bool,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    deliveries: VecDeque<Delivery>,
    /// What still arrives on streams that were cut.
    late: VecDeque<Delivery>,
    /// All that it said, without the stream.
    said: Vec<ledger::Event>,
    controls: VecDeque<Control>,
}

impl Sim {
    fn say(&mut self, event: ledger::Event) {
        self.said.push(event.clone());
        self.deliveries.push_back(Delivery::Event(event));
    }
}

/// What one client saw.
struct Client {
    model: &'static str,
    wants: u32,
    got: Vec<u32>,
    ends: u32,
    left: bool,
    /// On its way to the API.
    answers: VecDeque<Answer>,
    /// The root has died, and the API has yet to ask the next one.
    to_ask: bool,
    owner: u8,
}

pub(crate) struct World {
    now: u64,
    epoch: u64,
    routing: Routing,
    root: Router,
    ledger: Ledger,
    nodes: Vec<Sim>,
    /// The node of each stream that ever was.
    streams: Vec<usize>,
    clients: BTreeMap<QueryId, Client>,
    next: u128,
}

/// The token that any engine gives for a query at a position.
fn token(id: QueryId, position: u32) -> u32 {
    let bits: u32 = id.to_string().bytes().fold(7, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    bits.wrapping_add(position.wrapping_mul(7919))
}

/// A root's parts at the begin of a reign.
fn reign(routing: Routing, epoch: u64) -> (Router, Ledger) {
    let settings = router::Settings { name: "root".parse().unwrap(), routing, engine: None };
    let ledger = Ledger::new(ledger::Settings {
        epoch,
        eager: routing == Routing::Classic,
        lanes: LaneLimits { entries: 64, bytes: 1 << 20, ..LaneLimits::default() },
    });
    (Router::new(settings), ledger)
}
impl World {
    pub(crate) fn new(routing: Routing) -> Self {
        let (root, ledger) = reign(routing, 1);
        World {
            now: 0,
            epoch: 1,
            routing,
            root,
            ledger,
            nodes: Vec::new(),
            streams: Vec::new(),
            clients: BTreeMap::new(),
            next: 1,
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].alive).collect()
    }

    /// Those that are not about to leave.
    fn staying(&self) -> Vec<usize> {
        self.alive().into_iter().filter(|&index| !self.nodes[index].draining).collect()
    }

    /// Whether `node` is `above`, or hangs below it.
    fn is_below(&self, node: usize, above: usize) -> bool {
        node != usize::MAX && (node == above || self.is_below(self.nodes[node].parent, above))
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Ask { model, owner, tokens } => self.ask(MODELS[usize::from(model) % MODELS.len()], owner, tokens.into()),
            Step::ClientLeaves(which) => {
                let live: Vec<QueryId> =
                    self.clients.iter().filter(|(_, client)| client.ends == 0 && !client.left).map(|(id, _)| *id).collect();
                if !live.is_empty() {
                    let id = live[usize::from(which) % live.len()];
                    let client = self.clients.get_mut(&id).unwrap();
                    client.left = true;
                    client.answers.clear();
                    client.to_ask = false;
                    self.ledger(ledger::Event::ClientLeft { id });
                }
            }
            Step::Deliver(which) => {
                let channels = self.channels();
                if !channels.is_empty() {
                    self.deliver(channels[usize::from(which) % channels.len()]);
                }
            }
            Step::Compute(which) => {
                let alive = self.alive();
                if !alive.is_empty() {
                    self.engine_step(alive[usize::from(which) % alive.len()]);
                }
            }
            Step::Report(which) => {
                let alive = self.alive();
                if !alive.is_empty() {
                    self.report(alive[usize::from(which) % alive.len()]);
                }
            }
            Step::Join { below, model, busy_at, batch } => self.join(below, model, busy_at, batch),
            Step::Kill(which) => {
                // Somebody has to be left to answer.
                let staying = self.staying();
                if staying.len() > 1 {
                    self.kill(staying[usize::from(which) % staying.len()]);
                }
            }
            Step::Fail(which) => {
                let alive = self.alive();
                if !alive.is_empty() {
                    self.fail(alive[usize::from(which) % alive.len()]);
                }
            }
            Step::Detour(which, arrive) => {
                let alive = self.alive();
                if !alive.is_empty() {
                    self.detour(alive[usize::from(which) % alive.len()], arrive.into());
                }
            }
            Step::Drain(which) => {
                let staying = self.staying();
                if staying.len() > 1 {
                    self.drain(staying[usize::from(which) % staying.len()]);
                }
            }
            Step::Leave(which) => {
                let leaving: Vec<usize> = self.alive().into_iter().filter(|&index| self.nodes[index].draining).collect();
                if !leaving.is_empty() {
                    self.leave(leaving[usize::from(which) % leaving.len()]);
                }
            }
            Step::Move(which, below) => {
                let (alive, mut parents) = (self.alive(), vec![usize::MAX]);
                parents.extend(self.staying());
                let (index, parent) = (alive[usize::from(which) % alive.len()], parents[usize::from(below) % parents.len()]);
                if !self.is_below(parent, index) {
                    self.move_to(index, parent);
                }
            }
            Step::Blip(which) => {
                let alive = self.alive();
                if !alive.is_empty() {
                    self.blip(alive[usize::from(which) % alive.len()]);
                }
            }
            Step::Failover => self.fail_over(),
            Step::Reign => {
                self.epoch += 1;
                self.ledger(ledger::Event::Reigned { epoch: self.epoch });
            }
            Step::Detach(which) => {
                let live: Vec<QueryId> = self.clients.keys().copied().filter(|id| self.ledger.is_live(id)).collect();
                if !live.is_empty() {
                    let id = live[usize::from(which) % live.len()];
                    self.ledger(ledger::Event::Detached { id });
                    self.ledger(ledger::Event::Attached { id });
                }
            }
            Step::Time => self.tick(150_000),
        }
    }

    fn ask(&mut self, model: &'static str, owner: u8, wants: u32) {
        let id = QueryId::from_u128(self.next);
        self.next += 1;
        let (got, answers) = (Vec::new(), VecDeque::new());
        self.clients.insert(id, Client { model, wants, got, ends: 0, left: false, answers, to_ask: false, owner });
        self.ledger(ledger::Event::Asked(self.asked(id)));
    }

    fn asked(&self, id: QueryId) -> Asked {
        let client = &self.clients[&id];
        Asked {
            id,
            owner: format!("owner-{}", client.owner).into(),
            model: client.model.into(),
            priority: 0,
            prefer: None,
            tokens_max: client.wants,
            bytes: 10,
            // Deadlines have tests of their own.
            time_us: u64::MAX / 4,
            returning: false,
            impatient: false,
        }
    }
}

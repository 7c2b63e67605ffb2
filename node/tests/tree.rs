//! Random trees, loads, joins and losses through the production router and ledger, with messages that arrive in any order
//! between links and in order on each. No clock, no tasks: a case replays from its seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use banyan_node::{
    LaneLimits, Routing,
    capacity::{Capacity, serves},
    ledger::{self, Asked, Failure, Holder, Ledger},
    router::{self, Because, Router, Service, Ticket},
};
use banyan_proto::{Attempt, NodeName, QueryId};
use proptest::prelude::*;

const MODELS: [&str; 2] = ["small", "large"];

/// One thing that happens next; the numbers pick among what is possible then.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        model: u8,
        owner: u8,
        tokens: u8,
    },
    ClientLeaves(u8),
    Deliver(u16),
    Compute(u8),
    Report(u8),
    Join {
        below: u8,
        model: u8,
        busy_at: u8,
        batch: u8,
    },
    Kill(u8),
    /// A node's Deliver stream breaks and comes back.
    Blip(u8),
    /// A node's engine fails with all that it runs.
    Fail(u8),
    /// Another Deliver stream of a node takes over from one that was cut: of what was on its way, so much still arrives.
    Detour(u8, u8),
    /// A node begins to leave.
    Drain(u8),
    /// The deadline of one that is leaving passes.
    Leave(u8),
    /// A node attaches to another parent before it lets go of its own.
    Move(u8, u8),
    /// The root dies, and another one takes its place.
    Failover,
    /// The root's key is lost and taken again.
    Reign,
    /// A client loses its stream, or attaches again.
    Detach(u8),
    Time,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), 0u8..3, 1u8..6).prop_map(|(model, owner, tokens)| Step::Ask { model, owner, tokens }),
        1 => any::<u8>().prop_map(Step::ClientLeaves),
        20 => any::<u16>().prop_map(Step::Deliver),
        10 => any::<u8>().prop_map(Step::Compute),
        6 => any::<u8>().prop_map(Step::Report),
        1 => (any::<u8>(), any::<u8>(), 1u8..4, 0u8..4).prop_map(|(below, model, busy_at, more)| Step::Join {
            below,
            model,
            busy_at,
            batch: busy_at + more
        }),
        1 => any::<u8>().prop_map(Step::Kill),
        1 => any::<u8>().prop_map(Step::Blip),
        1 => any::<u8>().prop_map(Step::Fail),
        1 => any::<(u8, u8)>().prop_map(|(which, arrive)| Step::Detour(which, arrive)),
        1 => any::<u8>().prop_map(Step::Drain),
        1 => any::<u8>().prop_map(Step::Leave),
        1 => any::<(u8, u8)>().prop_map(|(which, below)| Step::Move(which, below)),
        1 => Just(Step::Failover),
        1 => Just(Step::Reign),
        1 => any::<u8>().prop_map(Step::Detach),
        1 => Just(Step::Time),
    ]
}

fn routing() -> impl Strategy<Value = Routing> {
    prop_oneof![Just(Routing::RoundRobin), Just(Routing::Weighted), Just(Routing::LeastBusy), Just(Routing::Classic)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_query_is_answered_once_in_order_and_none_waits_while_a_node_idles(
        routing in routing(),
        nodes in proptest::collection::vec((any::<u8>(), any::<u8>(), 1u8..4, 0u8..4), 1..8),
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(routing);
        for (below, model, busy_at, more) in nodes {
            world.join(below, model, busy_at, busy_at + more);
        }
        for step in steps {
            world.step(step);
        }
        world.settle();
        world.nobody_waits_while_a_node_idles();
        world.run_dry();
    }
}

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

struct World {
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
    fn new(routing: Routing) -> Self {
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

    fn step(&mut self, step: Step) {
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
        }
    }

    /// What the root had under way is lost; nodes and APIs find the next one, in any order.
    fn fail_over(&mut self) {
        self.epoch += 1;
        (self.root, self.ledger) = reign(self.routing, self.epoch);
        for client in self.clients.values_mut().filter(|client| client.ends == 0 && !client.left) {
            client.answers.clear();
            client.to_ask = true;
        }
        for index in self.alive() {
            self.nodes[index].deliveries.clear();
            if self.nodes[index].parent == usize::MAX {
                self.attach(index, usize::MAX);
            }
            self.reconnect(index);
        }
    }

    fn join(&mut self, below: u8, model: u8, busy_at: u8, batch: u8) {
        let mut parents = vec![usize::MAX];
        parents.extend(self.staying());
        let parent = parents[usize::from(below) % parents.len()];
        let index = self.nodes.len();
        let name: NodeName = format!("n{index}").parse().unwrap();
        let model = MODELS[usize::from(model) % MODELS.len()];
        let engine = router::Engine { models: vec![model.into()], busy_at: busy_at.into(), batch_max: batch.into() };
        let router = Router::new(router::Settings { name: name.clone(), routing: self.routing, engine: Some(engine) });
        self.nodes.push(Sim {
            name,
            model,
            parent,
            router,
            alive: true,
            draining: false,
            link: 0,
            stream: self.streams.len() as u64,
            received: 0,
            service: Service::default(),
            kept: BTreeMap::new(),
            report_due: false,
            down: VecDeque::new(),
            up: VecDeque::new(),
            deliveries: VecDeque::new(),
            late: VecDeque::new(),
            said: Vec::new(),
            controls: VecDeque::new(),
        });
        self.streams.push(index);
        self.node(index, router::Event::Connected(true), None);
        self.attach(index, parent);
    }

    fn attach(&mut self, index: usize, parent: usize) {
        self.nodes[index].down.clear();
        self.link(index, parent);
    }

    /// What is on its way on the old link still arrives.
    fn move_to(&mut self, index: usize, parent: usize) {
        let (child, old) = (self.nodes[index].name.clone(), self.nodes[index].parent);
        if old != parent {
            self.link(index, parent);
            self.parent(old, router::Event::ChildLeft { child, orderly: true });
        }
    }

    /// The node takes nothing more, and its children go elsewhere.
    fn drain(&mut self, index: usize) {
        self.nodes[index].draining = true;
        self.node(index, router::Event::Draining, None);
        for child in self.alive() {
            if self.nodes[child].parent == index {
                let above = self.nodes[index].parent;
                // The grandparent, if that one will have it.
                let parent = if self.staying().contains(&above) { above } else { usize::MAX };
                self.move_to(child, parent);
            }
        }
    }

    /// It lets go of its parent, refuses what was on its way, and hands over what it has.
    fn leave(&mut self, index: usize) {
        let (child, parent) = (self.nodes[index].name.clone(), self.nodes[index].parent);
        self.parent(parent, router::Event::ChildLeft { child, orderly: true });
        while !self.nodes[index].down.is_empty() {
            self.deliver_node(index, 0);
        }
        let node = &mut self.nodes[index];
        let (holder, stream) = (Holder { name: node.name.clone(), stream: node.stream }, node.stream);
        for (id, kept) in std::mem::take(&mut node.kept) {
            if !kept.aborted {
                let returned = ledger::Event::Returned { id, attempt: kept.attempt, holder: holder.clone() };
                node.deliveries.push_back(Delivery::Event(returned));
            }
        }
        node.deliveries.push_back(Delivery::Gone { stream });
        node.alive = false;
        node.controls.clear();
        node.up.clear();
    }

    fn link(&mut self, index: usize, parent: usize) {
        self.nodes[index].parent = parent;
        self.nodes[index].link += 1;
        self.nodes[index].received = 0;
        self.nodes[index].up.clear();
        self.nodes[index].report_due = true;
        let child = self.nodes[index].name.clone();
        self.parent(parent, router::Event::ChildJoined { child });
    }

    /// SIGKILL: what it had sent still arrives, what was sent to it does not, and its children go to the root.
    fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.alive = false;
        node.down.clear();
        node.controls.clear();
        node.up.push_back(Up::Gone);
        let stream = node.stream;
        node.deliveries.push_back(Delivery::Gone { stream });
        for child in self.alive() {
            if self.nodes[child].parent == index {
                self.attach(child, usize::MAX);
            }
        }
    }

    /// What was sent still arrives, then the end; on the new stream the node says what it holds.
    fn blip(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let stream = node.stream;
        node.deliveries.push_back(Delivery::Gone { stream });
        self.reconnect(index);
    }

    /// On a new stream the node says what it holds, and waits to be told where to go on.
    fn reconnect(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.controls.clear();
        node.stream = self.streams.len() as u64;
        self.streams.push(index);
        self.node(index, router::Event::Connected(false), None);
        self.node(index, router::Event::Connected(true), None);
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        for (&id, kept) in node.kept.iter_mut().filter(|(_, kept)| !kept.aborted) {
            kept.waits = true;
            node.deliveries.push_back(Delivery::Event(ledger::Event::Claimed {
                id,
                attempt: kept.attempt,
                holder: holder.clone(),
                running: kept.running || kept.ended,
                from: kept.from,
                trail: Vec::new(),
            }));
        }
    }

    fn resume(&mut self, index: usize, id: QueryId, attempt: Attempt, position: u32) {
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        let Some(kept) = node.kept.get_mut(&id).filter(|kept| kept.attempt == attempt && !kept.aborted) else {
            node.deliveries.push_back(Delivery::Event(ledger::Event::Returned { id, attempt, holder }));
            return;
        };
        kept.waits = false;
        for position in position..kept.position {
            let (holder, tokens) = (holder.clone(), vec![token(id, position)]);
            let said = ledger::Event::Generated { id, attempt, holder, position, tokens };
            node.deliveries.push_back(Delivery::Event(said));
        }
        if kept.ended {
            node.deliveries.push_back(Delivery::Event(ledger::Event::Finished { id, attempt, holder }));
            node.kept.remove(&id);
        }
    }

    /// Seven at once are as many as a parent takes in a row.
    fn fail(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        let running: Vec<QueryId> = node.kept.iter().filter(|(_, kept)| kept.running).map(|(id, _)| *id).collect();
        node.service.failed += 7;
        node.report_due = true;
        for id in running {
            let node = &mut self.nodes[index];
            let kept = node.kept.remove(&id).unwrap();
            if !kept.aborted {
                let (attempt, holder, fault) = (kept.attempt, holder.clone(), ledger::Fault::Engine);
                node.say(ledger::Event::Refused { id, attempt, holder, fault, trail: Vec::new() });
            }
            self.node(index, router::Event::Ended { id }, None);
        }
    }

    /// Part of what was sent on the old stream is lost, and its end comes late; the new one says what the node holds, and once
    /// more what it said of what has ended.
    fn detour(&mut self, index: usize, arrive: usize) {
        let node = &mut self.nodes[index];
        let mut cut = std::mem::take(&mut node.deliveries);
        cut.truncate(arrive % (cut.len() + 1));
        node.late.extend(cut);
        node.late.push_back(Delivery::Gone { stream: node.stream });
        self.reconnect(index);
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        for mut event in node.said.clone() {
            use ledger::Event;
            let (Event::Generated { holder: by, id, .. }
            | Event::Finished { holder: by, id, .. }
            | Event::Refused { holder: by, id, .. }
            | Event::Returned { holder: by, id, .. }) = &mut event
            else {
                continue;
            };
            by.clone_from(&holder);
            if !node.kept.contains_key(id) {
                node.deliveries.push_back(Delivery::Event(event));
            }
        }
    }

    /// As the root's task does: time passes, and then the ledger hears of the room as it is.
    fn tick(&mut self, time: u64) {
        self.now += time;
        self.root(router::Event::Tick, None);
        for index in self.alive() {
            self.node(index, router::Event::Tick, None);
        }
        self.ledger(ledger::Event::Tick);
        self.ledger(ledger::Event::Room(self.root.capacity()));
    }

    /// Tells a node's router, or the root's.
    fn parent(&mut self, parent: usize, event: router::Event) {
        if parent == usize::MAX {
            self.root(event, None);
        } else if self.nodes[parent].alive {
            self.node(parent, event, None);
        }
    }

    fn root(&mut self, event: router::Event, query: Option<Down>) {
        let mut query = query;
        for action in self.root.handle(self.now, event) {
            match action {
                router::Action::Forward { child, .. } => {
                    let child = self.nodes.iter_mut().find(|node| node.name == child && node.parent == usize::MAX);
                    if let (Some(child), Some(query)) = (child.filter(|child| child.alive), query.take()) {
                        child.down.push_back(Down { link: child.link, ..query });
                    }
                }
                router::Action::Refuse { id, because } => {
                    assert_ne!(because, Because::Held);
                    let attempt = query.take().unwrap().ticket.attempt;
                    self.ledger(ledger::Event::Bounced { id, attempt });
                }
                router::Action::Report { capacity, .. } => self.ledger(ledger::Event::Room(capacity)),
                router::Action::Judge { .. } => {}
                other => panic!("the root never infers and keeps nothing: {other:?}"),
            }
        }
    }

    fn node(&mut self, index: usize, event: router::Event, query: Option<Down>) {
        let mut query = query;
        for action in self.nodes[index].router.handle(self.now, event) {
            let holder = Holder { name: self.nodes[index].name.clone(), stream: self.nodes[index].stream };
            match action {
                router::Action::Report { .. } => self.nodes[index].report_due = true,
                router::Action::Judge { .. } => {}
                router::Action::Forward { child, .. } => {
                    let child = self.nodes.iter_mut().find(|node| node.name == child && node.parent == index && node.alive);
                    if let (Some(child), Some(query)) = (child, query.take()) {
                        child.down.push_back(Down { link: child.link, ..query });
                    }
                }
                router::Action::Execute { id } | router::Action::Queue { id } => {
                    let running = matches!(action, router::Action::Execute { .. });
                    let node = &mut self.nodes[index];
                    if let Some(Down { ticket, position, .. }) = query.take() {
                        assert!(serves(&[node.model.into()], &ticket.model), "{} got a query for {}", node.name, ticket.model);
                        let attempt = ticket.attempt;
                        let kept =
                            Kept { attempt, from: position, position, running, aborted: false, waits: false, ended: false };
                        node.kept.insert(id, kept);
                    }
                    let kept = node.kept.get_mut(&id).expect("what runs was kept");
                    kept.running = running;
                    let (attempt, from, trail) = (kept.attempt, kept.from, Vec::new());
                    let event = match kept.waits {
                        true => ledger::Event::Claimed { id, attempt, holder, running, from, trail },
                        false => ledger::Event::Held { id, attempt, holder, running, trail },
                    };
                    node.say(event);
                }
                router::Action::Refuse { id, .. } => {
                    let attempt = query.take().unwrap().ticket.attempt;
                    let refused = ledger::Event::Refused { id, attempt, holder, fault: ledger::Fault::Busy, trail: Vec::new() };
                    self.nodes[index].say(refused);
                }
                router::Action::Return { id } => {
                    let attempt = self.nodes[index].kept.remove(&id).unwrap().attempt;
                    self.nodes[index].say(ledger::Event::Returned { id, attempt, holder });
                }
                router::Action::Abort { id } => self.nodes[index].kept.get_mut(&id).unwrap().aborted = true,
                router::Action::Drop { id } => {
                    self.nodes[index].kept.remove(&id);
                }
            }
        }
    }

    fn engine_step(&mut self, index: usize) {
        let holder = Holder { name: self.nodes[index].name.clone(), stream: self.nodes[index].stream };
        let running: Vec<QueryId> = self.nodes[index].kept.iter().filter(|(_, kept)| kept.running).map(|(id, _)| *id).collect();
        for id in running {
            let wants = self.clients[&id].wants;
            let node = &mut self.nodes[index];
            let kept = node.kept.get_mut(&id).unwrap();
            let (attempt, position) = (kept.attempt, kept.position);
            let (waits, aborted) = (kept.waits, kept.aborted);
            let ended = aborted || position >= wants;
            if !aborted {
                node.service.busy_us += 1000;
                node.report_due = true;
                let event = if position < wants {
                    node.service.tokens += 1;
                    kept.position += 1;
                    ledger::Event::Generated { id, attempt, holder: holder.clone(), position, tokens: vec![token(id, position)] }
                } else {
                    node.service.answered += 1;
                    ledger::Event::Finished { id, attempt, holder: holder.clone() }
                };
                if !waits {
                    node.say(event);
                }
            }
            if ended {
                if waits && !aborted {
                    let kept = node.kept.get_mut(&id).unwrap();
                    (kept.running, kept.ended) = (false, true);
                } else {
                    node.kept.remove(&id);
                }
                self.node(index, router::Event::Ended { id }, None);
            }
        }
    }

    fn report(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if std::mem::take(&mut node.report_due) {
            node.up.push_back(Up::Report { received: node.received, capacity: node.router.capacity(), service: node.service });
        }
    }

    fn channels(&self) -> Vec<Channel> {
        let mut channels = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let full = [
                !node.down.is_empty(),
                !node.up.is_empty(),
                !node.deliveries.is_empty(),
                !node.controls.is_empty(),
                !node.late.is_empty(),
            ];
            channels.extend((0u8..5).filter(|&channel| full[usize::from(channel)]).map(|channel| Channel::Node(index, channel)));
        }
        for (id, client) in &self.clients {
            channels.extend((!client.answers.is_empty()).then_some(Channel::Answer(*id)));
            channels.extend(client.to_ask.then_some(Channel::Ask(*id)));
        }
        channels
    }

    fn deliver(&mut self, channel: Channel) {
        match channel {
            Channel::Node(index, channel) => self.deliver_node(index, channel),
            Channel::Answer(id) => self.read_answer(id),
            Channel::Ask(id) => {
                let client = self.clients.get_mut(&id).unwrap();
                client.to_ask = false;
                let delivered = client.got.clone();
                self.ledger(ledger::Event::AskedAgain { asked: self.asked(id), delivered });
            }
        }
    }

    /// Each position once, in order, and one end behind all of them.
    fn read_answer(&mut self, id: QueryId) {
        let client = self.clients.get_mut(&id).unwrap();
        match client.answers.pop_front().unwrap() {
            Answer::Token(position, token) => {
                assert_eq!(position as usize, client.got.len(), "a position was repeated or left out");
                assert_eq!(client.ends, 0, "a token after the end");
                client.got.push(token);
            }
            Answer::End => {
                client.ends += 1;
                assert_eq!(client.got, (0..client.wants).map(|position| token(id, position)).collect::<Vec<_>>());
            }
            Answer::Failed => client.ends += 1,
        }
    }

    fn deliver_node(&mut self, index: usize, channel: u8) {
        match channel {
            0 => {
                let down = self.nodes[index].down.pop_front().unwrap();
                if down.link == self.nodes[index].link {
                    self.nodes[index].received += 1;
                }
                // The parent counts it until a report says that it came.
                self.nodes[index].report_due = true;
                let mut ticket = down.ticket.clone();
                ticket.hops += 1;
                self.node(index, router::Event::Arrived(ticket.clone()), Some(Down { ticket, ..down }));
            }
            1 => {
                let up = self.nodes[index].up.pop_front().unwrap();
                let (child, parent) = (self.nodes[index].name.clone(), self.nodes[index].parent);
                self.parent(
                    parent,
                    match up {
                        Up::Report { received, capacity, service } => {
                            router::Event::ChildReported { child, received, capacity, service }
                        }
                        Up::Gone => router::Event::ChildLeft { child, orderly: false },
                    },
                );
            }
            2 | 4 => {
                let node = &mut self.nodes[index];
                let channel = if channel == 2 { &mut node.deliveries } else { &mut node.late };
                match channel.pop_front().unwrap() {
                    Delivery::Event(event) => self.ledger(event),
                    Delivery::Gone { stream } => self.ledger(ledger::Event::HolderLost { stream }),
                }
            }
            _ => {
                let event = match self.nodes[index].controls.pop_front().unwrap() {
                    Control::Resume(id, attempt, position) => return self.resume(index, id, attempt, position),
                    Control::Cancel(id, attempt) => {
                        let ended = self.nodes[index].kept.get(&id).is_some_and(|kept| kept.ended && kept.attempt <= attempt);
                        if ended {
                            self.nodes[index].kept.remove(&id);
                        }
                        router::Event::Cancelled { id, attempt }
                    }
                    Control::Recall(id, attempt) => router::Event::Recalled { id, attempt },
                };
                self.node(index, event, None);
            }
        }
    }

    fn ledger(&mut self, event: ledger::Event) {
        let said = match &event {
            ledger::Event::Generated { id, position, tokens, .. } => Some((*id, *position, tokens.clone())),
            _ => None,
        };
        for action in self.ledger.handle(self.now, event) {
            match action {
                ledger::Action::Send { ticket, .. } => {
                    let (delivered, _) = self.ledger.delivered(&ticket.id, self.now).expect("what is sent is live");
                    let position = delivered.len() as u32;
                    self.root(router::Event::Arrived(ticket.clone()), Some(Down { link: 0, ticket, position }));
                }
                ledger::Action::Deliver { id } => {
                    let (of, position, tokens) = said.clone().unwrap();
                    assert_eq!(of, id);
                    let client = self.clients.get_mut(&id).unwrap();
                    let tokens = tokens.into_iter().zip(position..).map(|(token, at)| Answer::Token(at, token));
                    client.answers.extend(tokens);
                }
                ledger::Action::Finish { id } => self.clients.get_mut(&id).unwrap().answers.push_back(Answer::End),
                ledger::Action::Fail { id, failure } => {
                    let client = self.clients.get_mut(&id).unwrap();
                    client.answers.push_back(Answer::Failed);
                    let served = self.root.capacity().iter().any(|set| serves(&set.models, client.model));
                    match failure {
                        Failure::Overloaded { .. } => assert!(client.got.is_empty()),
                        Failure::UnknownModel { .. } | Failure::Unserved => assert!(!served),
                        Failure::Poison => {}
                        other => panic!("{other:?}"),
                    }
                }
                ledger::Action::Resume { stream, id, attempt, position } => {
                    self.control(stream, Control::Resume(id, attempt, position));
                }
                ledger::Action::Cancel { stream, id, attempt } => self.control(stream, Control::Cancel(id, attempt)),
                ledger::Action::Recall { stream, id, attempt } => self.control(stream, Control::Recall(id, attempt)),
                ledger::Action::Placed { .. } | ledger::Action::Pause { .. } => {}
            }
        }
    }

    fn control(&mut self, stream: u64, control: Control) {
        let node = &mut self.nodes[self.streams[stream as usize]];
        if node.alive && node.stream == stream {
            node.controls.push_back(control);
        }
    }

    /// Engines let go of what was taken from them.
    fn let_go(&mut self, index: usize) {
        let aborted = self.nodes[index].kept.iter().filter(|(_, kept)| kept.aborted).map(|(id, _)| *id);
        for id in aborted.collect::<Vec<_>>() {
            self.nodes[index].kept.remove(&id);
            self.node(index, router::Event::Ended { id }, None);
        }
    }

    /// Delivers everything that is on its way, with the engines standing still.
    fn settle(&mut self) {
        // The classic rule, which knows no room, goes on trying a full tree.
        let rounds = if self.routing == Routing::Classic { 6 } else { 50 };
        for _ in 0..rounds {
            let mut messages = 0;
            loop {
                for index in self.alive() {
                    self.let_go(index);
                    self.report(index);
                }
                let Some(&channel) = self.channels().first() else { break };
                self.deliver(channel);
                messages += 1;
                assert!(messages < 100_000, "messages without end: a query is sent in circles");
            }
            self.tick(2_500_000);
            if self.channels().is_empty() {
                return;
            }
        }
        assert_eq!(self.routing, Routing::Classic, "messages never cease");
    }

    /// Whether somebody on the way to it passes it over, because it failed too often.
    fn is_shut(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let parent = if node.parent == usize::MAX { &self.root } else { &self.nodes[node.parent].router };
        parent.standing(&node.name, self.now).1 > 0 || node.parent != usize::MAX && self.is_shut(node.parent)
    }

    fn nobody_waits_while_a_node_idles(&self) {
        if self.routing == Routing::Classic {
            return;
        }
        let open = |&index: &usize| self.nodes[index].router.has_room() && !self.is_shut(index);
        let idle: BTreeSet<&str> = self.alive().into_iter().filter(open).map(|index| self.nodes[index].model).collect();
        for (id, client) in &self.clients {
            let waits = client.ends == 0
                && !client.left
                && !self.nodes.iter().any(|node| node.alive && node.kept.get(id).is_some_and(|kept| kept.running));
            // Suspects wait for their turn.
            let suspect = self.ledger.is_suspect(id);
            assert!(
                !(waits && !suspect && idle.contains(client.model)),
                "query {id} for {} waits while a node idles: {:?}",
                client.model,
                self.ledger.way(id)
            );
        }
    }

    /// Runs the engines until every query has ended.
    fn run_dry(&mut self) {
        for _ in 0..2000 {
            self.settle();
            self.nobody_waits_while_a_node_idles();
            if self.clients.values().all(|client| client.left || client.ends > 0) {
                break;
            }
            for index in self.alive() {
                self.engine_step(index);
            }
        }
        self.settle();
        for index in self.alive() {
            self.engine_step(index);
        }
        for (id, client) in &self.clients {
            assert!(
                client.left || client.ends == 1,
                "query {id} for {} ended {} times: {:?}",
                client.model,
                client.ends,
                self.ledger.way(id)
            );
        }
        // What nobody asked for again is cancelled.
        self.tick(ledger::ORPHAN_TIMEOUT_US);
        self.settle();
        for index in self.alive() {
            self.engine_step(index);
        }
        assert_eq!((self.ledger.live(), self.ledger.waiting(), self.ledger.orphans()), (0, 0, 0));
        for node in self.nodes.iter().filter(|node| node.alive) {
            assert_eq!((node.router.running(), node.router.queued()), (0, 0), "{} still has work", node.name);
            assert!(node.kept.is_empty(), "{} still keeps answers: {:?}", node.name, node.kept);
        }
    }
}

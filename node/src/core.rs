//! The node's one task: it owns router, ledger and engine, is told what happens by links and services, and does what
//! the pure parts decide. It never waits for a peer: whoever can't keep up with a bounded channel loses its link.

mod answers;
mod children;
mod chunks;
mod desk;
mod early;
mod holding;
mod input;
mod leave;
mod parcel;
mod parent;
mod reign;
mod relay;
mod status;
mod streams;
mod task;
mod traced;
mod watch;
mod work;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use banyan_engine as engine;
use banyan_observe::Tracer;
use banyan_proto::{NodeName, QueryId, Transport, v1};
use tokio::{sync::oneshot, time::Instant};

pub(crate) use self::input::{
    AnswerStream, Ask, Attach, Attached, ChildLink, Handle, HolderLink, Input, Snapshot, Stopped, ToHolder, WhyFound,
};
use self::{
    children::Child,
    desk::Desk,
    leave::Leave,
    parcel::Parcel,
    parent::Uplink,
    relay::{Detour, Relay},
    watch::Watch,
    work::Work,
};
use crate::{
    config::{Config, LaneLimits},
    journal::{Fact, Journal},
    ledger,
    meters::{self, Meters},
    recording::{Record, Recording},
    router::{self, Router, Service},
};

/// The ledger's time-outs are seconds; a tenth is fine enough.
pub const TICK: Duration = Duration::from_millis(100);
/// What a node keeps for a root that comes next is nobody's after that long: APIs have given up by then.
const ROOTLESS_PATIENCE: Duration = Duration::from_secs(30);
/// Messages to one peer that wait for its stream; a peer that is further behind than that is gone for all we know.
pub(crate) const OUTBOX: usize = 8192;

/// The task's state. See the module.
pub(crate) struct Core {
    name: NodeName,
    started: Instant,
    /// When it was woken: what it does has no clock of its own, so that it can be driven under virtual time.
    pub(crate) now: Instant,
    router: Router,
    recording: Option<Recording>,
    journal: Journal,
    /// Where nobody scrapes there are none.
    meters: Option<Meters>,
    tracer: Tracer,
    engine: Option<Work>,
    /// While the node is its tree's root.
    desk: Option<Desk>,
    /// While somebody watches its tree.
    watch: Option<Watch>,
    /// Sequences that its engine runs together.
    slots: u32,
    /// What its desk is made with.
    eager: bool,
    lanes: LaneLimits,
    /// Since when the node has no way to the root.
    rootless_since: Option<Instant>,
    /// What nodes below did, as far as they reported.
    below: Service,
    children: BTreeMap<NodeName, Child>,
    uplink: Option<Uplink>,
    ancestry: v1::Ancestry,
    /// The parent does not know our present capacity.
    report: bool,
    report_at: Option<Instant>,
    /// Inspections sent down, by number.
    inspections: HashMap<u64, oneshot::Sender<v1::Inspected>>,
    inspection: u64,
    leave: Option<Leave>,
    /// The node's own stream over its parents, where the straight way is cut.
    detour: Option<Detour>,
    /// Whether that is the one in use.
    relayed: bool,
    /// Streams of nodes below that come over the links.
    relays: BTreeMap<NodeName, Relay>,
    /// Signs what goes over the links, and looks at who signed what comes.
    transport: Transport,
    /// At the root: numbers of streams.
    streams: Arc<AtomicU64>,
    /// At the root: streams that have ended or been taken over, and since when, the oldest first.
    ended_streams: Vec<(u64, Instant)>,
    /// Nodes whose links to their parents broke, and when.
    severed: BTreeMap<NodeName, Instant>,
    /// Set when the node ends because it was told to leave.
    left: Arc<AtomicBool>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Core {
    /// The state alone, for whoever drives it.
    pub(crate) fn new(
        config: &Config,
        engine: Option<engine::Engine>,
        epoch: Option<u64>,
        now: Instant,
        journal: Journal,
    ) -> Core {
        let settings = router::Settings {
            name: config.name.clone(),
            routing: config.routing,
            engine: engine.as_ref().map(|engine| engine_settings(config, engine.info())),
        };
        let slots = settings.engine.as_ref().map_or(0, |engine| engine.batch_max);
        let eager = config.routing == crate::Routing::Classic;
        let desk = epoch.map(|epoch| {
            Desk::new(ledger::Settings { epoch, eager, lanes: config.lanes }, config.name.clone(), config.tracer.clone())
        });
        if let Some(recording) = &config.recording {
            recording.push(Record::RouterStarted { settings: settings.clone() });
            if let Some(desk) = &desk {
                recording.push(Record::LedgerStarted { settings: desk.ledger.settings().clone() });
            }
        }
        Core {
            name: config.name.clone(),
            started: now,
            now,
            router: Router::new(settings),
            recording: config.recording.clone(),
            journal,
            meters: None,
            tracer: config.tracer.clone(),
            engine: engine.map(|engine| Work::new(engine, now, config.tracer.clone())),
            desk,
            watch: None,
            slots,
            eager,
            lanes: config.lanes,
            rootless_since: None,
            below: Service::default(),
            children: BTreeMap::new(),
            uplink: None,
            ancestry: v1::Ancestry { ancestors: Vec::new(), epoch: epoch.unwrap_or(0) },
            report: false,
            report_at: None,
            inspections: HashMap::new(),
            inspection: 0,
            leave: None,
            detour: None,
            relayed: false,
            relays: BTreeMap::new(),
            transport: config.transport.clone(),
            streams: Arc::default(),
            ended_streams: Vec::new(),
            severed: BTreeMap::new(),
            left: Arc::default(),
            stopping: None,
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        match input {
            Input::ChildAttached(link) => self.child_attached(link),
            Input::ChildReport { child, link, report } => self.child_report(child, link, report),
            Input::ChildLeaving { child, link } => self.child_gone(child, link, true),
            Input::ChildGone { child, link } => self.child_gone(child, link, false),
            Input::Inspected { inspected } => {
                if let Some(reply) = self.inspections.remove(&inspected.number) {
                    // Fails when the asker's patience ended first.
                    let _ = reply.send(*inspected);
                }
            }
            Input::Attached(attached) => self.attached(attached),
            Input::Detached { link } => {
                self.parted(link);
                if self.uplink.as_ref().is_some_and(|uplink| uplink.link == link) {
                    self.uplink = None;
                    self.end_relays_up();
                    self.set_ancestry(v1::Ancestry::default());
                    self.tell_presence();
                }
            }
            Input::Ancestry { link, ancestry } => {
                if self.uplink.as_ref().is_some_and(|uplink| uplink.link == link) {
                    self.set_ancestry(ancestry);
                }
            }
            Input::Query { link, query } => self.query(link, query),
            Input::RootConnected { to, relayed } => self.root_connected(to, relayed),
            Input::OpenDetour { number, controls } => self.open_detour(number, controls),
            Input::Detour { number, message } => self.detour(number, message),
            Input::ChildRelay { child, link, relay } => self.child_relay(child, link, relay),
            Input::ParentRelay { link, relay } => self.parent_relay(link, relay),
            Input::RootLost => self.root_lost(),
            Input::Control(control) => self.control(control),
            Input::Ask(ask) => self.ask(*ask),
            Input::Attach(attach) => self.attach_reader(attach),
            Input::CancelAnswer { id, owner, early } => self.cancel_answer(id, &owner, early),
            Input::Reign { epoch } => self.reign(epoch),
            Input::StepDown => self.step_down(),
            Input::HolderJoined(link) => self.holder_joined(link),
            Input::HolderGone { stream } => self.holder_silent(stream),
            Input::Severed { node } => self.severed(node),
            Input::Presence { stream, presence } => self.presence(stream, presence),
            Input::Frame { stream, frame } => self.frame(stream, frame),
            Input::AskChildren { inspection, reply } => self.ask_children(inspection, reply),
            Input::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Input::Log { last, reply } => {
                let _ = reply.send((self.journal.last(last as usize), self.journal.follow()));
            }
            Input::Why { id, reply } => {
                let _ = reply.send(self.desk.as_ref().map(|desk| desk.why(&id)));
            }
            Input::Watch(reply) => {
                let _ = reply.send(self.watched());
            }
            Input::Note(text) => self.journal.push(Fact::Note(text)),
            Input::Drain { deadline, begun } => {
                let draining = self.drain(deadline);
                // Fails when the asker's patience ended first.
                let _ = begun.send(draining);
            }
            Input::Stop(stopped) => self.stopping = Some(stopped),
        }
    }

    // ---- The pure parts

    /// Tells the router, and does what it decides.
    fn route(&mut self, event: router::Event) {
        self.route_with(event, None);
    }

    fn route_with(&mut self, event: router::Event, query: Option<Parcel>) {
        let now = self.now();
        let actions = self.router.handle(now, event.clone());
        if let Some(recording) = &self.recording {
            recording.push(Record::Router { now, event: event.clone(), actions: actions.clone() });
        }
        let mut query = query;
        for action in &actions {
            if let Some(meters) = &self.meters {
                meters.decided(action);
            }
            self.act(action, &mut query);
        }
        if let Some(work) = &self.engine {
            work.expect(self.router.queued());
        }
        self.journal.push(Fact::Router(event, actions));
    }

    fn act(&mut self, action: &router::Action, query: &mut Option<Parcel>) {
        use router::Action;
        match action {
            Action::Report { urgent, .. } => self.note_report(*urgent),
            Action::Forward { id, child, choice } => {
                let Some(query) = query.take() else { return };
                self.forward(*id, child, *choice, query);
            }
            Action::Refuse { id, because } if self.desk.is_some() => {
                tracing::debug!(query = %id, ?because, "bounced");
                if let Some(query) = query.take() {
                    self.ledger(ledger::Event::Bounced { id: *id, attempt: query.attempt() }, None);
                }
            }
            Action::Execute { .. }
            | Action::Queue { .. }
            | Action::Refuse { .. }
            | Action::Return { .. }
            | Action::Abort { .. }
            | Action::Judge { .. }
            | Action::Drop { .. } => {
                let ended = match &mut self.engine {
                    Some(work) => work.act(&self.name, action, query.take(), self.now, self.meters.as_ref()),
                    None => None,
                };
                if let Some(id) = ended {
                    self.route(router::Event::Ended { id });
                }
            }
        }
    }

    /// Tells the ledger, and does what it decides. `at_hand` is the message that the event was read from.
    fn ledger(&mut self, event: ledger::Event, at_hand: Option<v1::part::Kind>) {
        let now = self.now();
        let Some(desk) = &mut self.desk else { return };
        let actions = desk.ledger.handle(now, event.clone());
        if let Some(recording) = &self.recording {
            recording.push(Record::Ledger { now, event: event.clone(), actions: actions.clone() });
        }
        if let Some(watch) = &mut self.watch {
            watch.note(&event, &actions, &desk.ledger);
        }
        self.measure(&event, &actions);
        let mut at_hand = at_hand;
        for action in &actions {
            let Some(desk) = &mut self.desk else { return };
            if let ledger::Action::Send { ticket, why } = action {
                let query = desk.query(ticket, *why, now);
                let avoid = desk.avoid(&ticket.id, *why);
                self.route_with(router::Event::Arrived(router::Ticket { avoid, ..ticket.clone() }), query);
            } else {
                desk.act(action, &mut at_hand, self.now);
            }
        }
        self.journal.push(Fact::Ledger(event, actions));
    }

    /// Counts what the ledger decided.
    fn measure(&mut self, event: &ledger::Event, actions: &[ledger::Action]) {
        let (Some(meters), Some(desk)) = (&mut self.meters, &self.desk) else { return };
        match event {
            ledger::Event::ClientLeft { id } => {
                if let Some(way) = desk.ledger.ended(id) {
                    meters.ended(way, meters::CANCELLED, true);
                }
            }
            ledger::Event::Generated { tokens, .. }
                if actions.iter().any(|action| matches!(action, ledger::Action::Deliver { .. })) =>
            {
                meters.delivered(tokens.len() as u64);
            }
            _ => {}
        }
        for action in actions {
            let (id, outcome) = match action {
                ledger::Action::Send { why, .. } => {
                    meters.sent(*why);
                    continue;
                }
                // Where a node holds it, it is not sent.
                ledger::Action::Resume { .. } => {
                    meters.sent(ledger::Why::Adopted);
                    continue;
                }
                ledger::Action::Finish { id } => (id, meters::FINISHED),
                ledger::Action::Fail { id, failure } => (id, meters::outcome(failure)),
                _ => continue,
            };
            if let Some(way) = desk.ledger.ended(id) {
                meters.ended(way, outcome, desk.ledger.has_served(&way.model));
            }
        }
    }

    /// Microseconds since the node started.
    fn now(&self) -> u64 {
        self.now.duration_since(self.started).as_micros() as u64
    }

    pub(crate) fn tick(&mut self) {
        if self.rootless_since.is_some_and(|since| self.now - since >= ROOTLESS_PATIENCE) {
            self.rootless_since = None;
            self.let_go();
        }
        if !self.children.is_empty() {
            self.route(router::Event::Tick);
        }
        if self.desk.is_none() {
            return;
        }
        self.end_streams();
        self.ledger(ledger::Event::Tick, None);
        self.show_sights();
        let Some(desk) = &mut self.desk else { return };
        desk.expire(self.now);
        // What was refused for wrong numbers goes by the present ones.
        desk.room_changed = true;
        if let Some(note) = desk.note_overload(self.now) {
            tracing::warn!(node = %self.name, note);
            self.journal.push(Fact::Note(note));
        }
        for (id, serial) in desk.stalled_clients(self.now) {
            self.journal.push(Fact::Note(format!("query {id} cut off, its client reads nothing")));
            self.client_left(id, serial);
        }
    }

    /// `serial` tells the readers of one answer apart.
    pub(crate) fn client_left(&mut self, id: QueryId, serial: u64) {
        let Some(desk) = &mut self.desk else { return };
        if let Some(event) = desk.forget(id, serial) {
            self.ledger(event, None);
        }
    }

    /// What came together leaves together.
    pub(crate) fn flush(&mut self) {
        if let Some(desk) = &mut self.desk {
            let room_changed = std::mem::take(&mut desk.room_changed);
            let (broken, gone) = (desk.take_broken(), desk.take_gone());
            if room_changed {
                self.ledger(ledger::Event::Room(self.router.capacity()), None);
            }
            for stream in broken {
                self.holder_gone(stream);
            }
            for (id, serial) in gone {
                self.client_left(id, serial);
            }
            self.flush_relayed();
        }
        if let Some(work) = &mut self.engine
            && !work.flush(self.now)
        {
            // The root reads nothing: the stream's end will say that it is lost.
            tracing::warn!(node = %self.name, "the root does not read, its stream is cut");
            self.route(router::Event::Connected(false));
        }
        if self.report_at.is_some_and(|at| at <= self.now) {
            self.send_report();
        }
    }

    /// The last words: clients learn that there is no more, and what is kept goes back.
    pub(crate) fn hand_over(&mut self) {
        if let Some(desk) = &mut self.desk {
            desk.shut_down();
        }
        // The parent sends nothing more down here, least of all what is handed back.
        self.uplink = None;
        if let Some(work) = &mut self.engine {
            work.hand_back();
            work.flush(self.now);
        }
    }

    pub(crate) fn report_at(&self) -> Option<Instant> {
        self.report_at
    }

    pub(crate) fn is_suspect(&self, id: &QueryId) -> bool {
        self.desk.as_ref().is_some_and(|desk| desk.ledger.is_suspect(id))
    }
}

/// What the router is told of the engine: the configuration's wishes within what the engine can.
pub(crate) fn engine_settings(config: &Config, info: &engine::Info) -> router::Engine {
    let batch_max = config.batch_max.unwrap_or(info.batch_max).clamp(1, info.batch_max.max(1));
    let busy_at = config.busy_at.unwrap_or(batch_max).clamp(1, batch_max);
    let mut models: Vec<Arc<str>> = info.models.iter().map(|served| Arc::from(served.model.as_str())).collect();
    models.sort();
    router::Engine { models, busy_at, batch_max, queue_max: if info.queues { batch_max } else { 0 } }
}

/// Reads a counter that another task writes.
fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

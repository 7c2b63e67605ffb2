//! What the root owes to whom: every query from the moment it is accepted until it is answered or has failed.
//!
//! Only the root knows whether a query is finished, so only the ledger times out, sends again, recalls, cancels and
//! refuses for overload. A token is `(query, attempt, position)`; whatever carries an older attempt is cancelled at its
//! source, so a client sees each position exactly once, whoever died. Pure code: time comes in with each event. Which
//! child a query goes to is the router's; payloads and streams are the node task's.

mod blame;
mod budget;
mod claims;
mod dispatch;
mod entry;
#[cfg(test)]
mod fixtures;
mod overload;
mod reading;
#[cfg(test)]
mod tests;
mod timeouts;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use banyan_proto::{Attempt, QueryId};

use self::{
    blame::Part,
    budget::Budget,
    claims::{Claim, Orphans},
    entry::Entry,
};
pub use self::{
    claims::{CLAIM_TIMEOUT_US, DETACHED_TIMEOUT_US, ORPHAN_TIMEOUT_US},
    types::{Action, Asked, Event, Failure, Fault, Holder, Hop, Outcome, Overload, Settings, State, Try, Way, Why},
};
use crate::{
    capacity::{self, Capacity},
    lanes::Lanes,
    rates::Rates,
    returns::Returns,
    ways::Ways,
};

/// A sent query that nobody says to hold is sent again: the message was lost with a node on its way.
pub const HOLDING_TIMEOUT_US: u64 = 2_000_000;
/// A running query that makes no progress has a hung engine. The longest honest silence is one prefill chunk of a large
/// model on an old machine.
pub const PROGRESS_TIMEOUT_US: u64 = 30_000_000;
/// How long a query waits for a node that serves its model: one that died and was started again is back by then, although
/// the lease of its earlier life has to end first.
pub const UNSERVED_TIMEOUT_US: u64 = 30_000_000;
/// More models than any tree has engines for; beyond that a model that is away is unknown at once.
const KNOWN_MODELS_MAX: usize = 4096;
/// With classic routing the root knows no room, so it tries again in portions.
const EAGER_RETRIES: usize = 64;
/// Enough to choose from, in an error.
const SERVED_TOLD_MAX: usize = 64;
/// A delivered token, as the ledger keeps it.
const TOKEN_BYTES: usize = size_of::<u32>();

/// Keeps the accounts of one root's reign. See the module.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    entries: HashMap<QueryId, Entry>,
    lanes: Lanes,
    /// What the tree can take, as the router last said, less what was sent since.
    room: Vec<Capacity>,
    /// Models that were served at any time of this reign: their nodes may come back.
    known: BTreeSet<Arc<str>>,
    /// The last progress on each node's stream: an engine that gets on with others is not hung.
    streams: HashMap<u64, u64>,
    /// Suspects that wait for their turn, the oldest first, and the one whose turn it is: when its node dies too, it alone
    /// is to blame.
    suspects: BTreeSet<(u64, QueryId)>,
    /// Of each death the one whose turn it is: those of different deaths do not wait for each other, or the loss of a thousand
    /// nodes at once would take as long as a thousand answers.
    out: BTreeMap<u64, QueryId>,
    /// Queries that wait because too much is being sent again, the oldest first.
    paused: BTreeSet<(u64, QueryId)>,
    budget: Budget,
    /// Queries in nodes' queues, the oldest first.
    queued: BTreeSet<(u64, QueryId)>,
    /// Recalled and not yet back: each has a room waiting for it.
    recalling: BTreeSet<QueryId>,
    /// Asked again, and waiting for the node that holds them, the oldest first; until then.
    unclaimed: BTreeSet<(u64, QueryId)>,
    claims_until: u64,
    /// Whether another root reigned before: somebody told of it.
    succeeds: bool,
    orphans: Orphans,
    /// Impatient ones that have begun to wait.
    impatient: Vec<QueryId>,
    accepted: u64,
    /// What the payloads and the delivered tokens of all entries take.
    live_bytes: usize,
    rates: Rates,
    returns: Returns,
    ways: Ways,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(settings: Settings) -> Self {
        let lanes = Lanes::new(settings.lanes);
        Ledger {
            settings,
            entries: HashMap::new(),
            lanes,
            room: Vec::new(),
            known: BTreeSet::new(),
            streams: HashMap::new(),
            suspects: BTreeSet::new(),
            out: BTreeMap::new(),
            paused: BTreeSet::new(),
            budget: Budget::default(),
            queued: BTreeSet::new(),
            recalling: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            claims_until: 0,
            succeeds: false,
            orphans: Orphans::default(),
            impatient: Vec::new(),
            accepted: 0,
            live_bytes: 0,
            rates: Rates::default(),
            returns: Returns::default(),
            ways: Ways::default(),
        }
    }

    /// Decides what to do about one event at `now`, in microseconds since the node started.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        if self.claims_until == 0 {
            self.claims_until = now.saturating_add(CLAIM_TIMEOUT_US);
        }
        let mut actions = Vec::new();
        match event {
            Event::Asked(asked) => self.ask(now, asked, &mut actions),
            Event::AskedAgain { asked, delivered } => {
                self.succeeds = true;
                self.ask_again(now, asked, delivered, &mut actions);
            }
            Event::Reigned { epoch } => self.settings.epoch = epoch,
            Event::Claimed { id, attempt, holder, running, from, trail } => {
                self.succeeds |= attempt.epoch < self.settings.epoch;
                self.streams.insert(holder.stream, now);
                self.forgive(id, attempt, &holder);
                self.claim(now, id, Claim { attempt, holder, running, from, trail }, &mut actions);
            }
            Event::Detached { id } => self.detach(now, id),
            Event::Attached { id } => self.attach(id),
            Event::Room(room) => {
                self.room = room;
                self.learn_models();
                self.dispatch(now, &mut actions);
            }
            Event::Held { id, attempt, holder, running, trail } => {
                self.streams.insert(holder.stream, now);
                self.forgive(id, attempt, &holder);
                if let Some(entry) = self.current(id, attempt, &holder, &mut actions) {
                    entry.hold(now, holder, running, trail);
                    let (order, placed) = (entry.order, entry.placed());
                    actions.push(placed);
                    if running {
                        self.queued.remove(&(order, id));
                        self.recalling.remove(&id);
                    } else {
                        self.queued.insert((order, id));
                    }
                    self.dispatch(now, &mut actions);
                }
            }
            Event::Progressed { id, attempt, holder } => {
                self.streams.insert(holder.stream, now);
                if let Some(entry) = self.current(id, attempt, &holder, &mut actions) {
                    entry.seen_at = now;
                    entry.started = true;
                }
            }
            Event::Generated { id, attempt, holder, position, tokens } => {
                self.generated(now, id, attempt, holder, position, tokens, &mut actions);
            }
            Event::Finished { id, attempt, holder } => {
                self.streams.insert(holder.stream, now);
                if self.current(id, attempt, &holder, &mut actions).is_some() {
                    actions.push(Action::Finish { id });
                    self.end(now, id, Outcome::Finished, None);
                    match self.settings.eager {
                        true => self.retry(now, 1, &mut actions),
                        false => self.dispatch(now, &mut actions),
                    }
                }
            }
            Event::Refused { id, attempt, holder, fault, trail } => {
                if let Some(entry) = self.current(id, attempt, &holder, &mut actions) {
                    let model = entry.model.clone();
                    entry.tried(now, Some(holder), Outcome::Refused, trail);
                    match fault {
                        Fault::Busy => {
                            // The numbers that sent it there were wrong, so nothing more goes by them.
                            capacity::close(&mut self.room, &model);
                            self.wait_again(now, id, Why::Refused, &mut actions);
                        }
                        Fault::Engine => {
                            self.blame(now, id, true, &mut actions);
                            self.dispatch(now, &mut actions);
                        }
                        Fault::Query => {
                            actions.push(Action::Fail { id, failure: Failure::Holder });
                            self.end(now, id, Outcome::Refused, Some("refused by the node"));
                            self.dispatch(now, &mut actions);
                        }
                    }
                }
            }
            Event::Bounced { id, attempt } => {
                if let Some(entry) = self.entries.get(&id).filter(|entry| entry.attempt == attempt) {
                    capacity::close(&mut self.room, &entry.model);
                    self.wait_again(now, id, Why::Refused, &mut actions);
                }
            }
            Event::Returned { id, attempt, holder } => {
                if let Some(entry) = self.current(id, attempt, &holder, &mut actions) {
                    let why = if entry.recalled { Why::Recalled } else { Why::Returned };
                    entry.tried(now, None, Outcome::Returned, Vec::new());
                    self.wait_again(now, id, why, &mut actions);
                    self.dispatch(now, &mut actions);
                }
            }
            Event::HolderLost { stream } => {
                self.streams.remove(&stream);
                self.orphans.lose(stream);
                let held = self.held_by(stream);
                let guilty = |id: &QueryId| self.is_out(id) && self.entries[id].started;
                let guilty: Vec<QueryId> = held.iter().copied().filter(guilty).collect();
                for id in held {
                    let part = match guilty[..] {
                        [] => Part::Suspect,
                        [one] if one == id => Part::Suspect,
                        // Suspects of several deaths met there: which of them it was is told apart like the first time.
                        _ if guilty.contains(&id) => Part::OneOfSome,
                        _ => Part::Bystander,
                    };
                    self.lose(now, id, part, &mut actions);
                }
                self.dispatch(now, &mut actions);
            }
            Event::Vanished { id } => {
                if self.entries.get(&id).is_some_and(|entry| entry.state == State::Sent) {
                    self.lose(now, id, Part::Bystander, &mut actions);
                    self.dispatch(now, &mut actions);
                }
            }
            Event::ClientLeft { id } => {
                if let Some(entry) = self.entries.get(&id) {
                    entry.cancel(&mut actions);
                    self.end(now, id, Outcome::Cancelled, Some("the client left"));
                    self.dispatch(now, &mut actions);
                }
            }
            Event::Tick => self.tick(now, &mut actions),
        }
        self.send_elsewhere(now, &mut actions);
        actions
    }

    /// Whoever has somebody else in mind hears at once that it would have to wait here.
    fn send_elsewhere(&mut self, now: u64, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.impatient) {
            let waits = |entry: &Entry| entry.state == State::Waiting && entry.tokens.is_empty();
            if self.entries.get(&id).is_some_and(waits) {
                actions.push(Action::Fail { id, failure: Failure::NoPlace });
                self.end(now, id, Outcome::Refused, Some("no node had a place for it"));
            }
        }
    }

    fn ask(&mut self, now: u64, asked: Asked, actions: &mut Vec<Action>) {
        let id = asked.id;
        // Under the same id somebody may have asked for another model.
        let before = self.ways.get(&id).map(|way| way.tries.clone()).unwrap_or_default();
        // Nodes of a tree that was taken over come one after the other.
        let arriving = self.succeeds && now < self.claims_until;
        let hopeless = !asked.model.is_empty() && !self.room.is_empty() && !self.known.contains(&asked.model) && !arriving;
        if hopeless {
            actions.push(Action::Fail { id, failure: self.unknown_model() });
            self.ways.push(Way { tries: before, ..Way::refused(&asked, "no node serves its model") });
            return;
        }
        let place = |set: &Capacity| set.room | set.queue;
        if asked.impatient && !self.settings.eager && capacity::total(&self.room, &asked.model, place) == 0 {
            actions.push(Action::Fail { id, failure: Failure::NoPlace });
            self.ways.push(Way { tries: before, ..Way::refused(&asked, "no node had a place for it") });
            return;
        }
        let mut entry = Entry::new(now, self.accepted + 1, asked.clone(), self.settings.epoch);
        entry.goes_on_behind(before.clone());
        let waiting = entry.waiting();
        if let Some(failure) = self.overload(now, &asked, &waiting) {
            actions.push(Action::Fail { id, failure });
            let way = Way::refused(&asked, "the tree is full and so are the lanes at the root");
            self.ways.push_overloaded(Way { tries: before, ..way });
            return;
        }
        if asked.impatient {
            self.impatient.push(id);
        }
        self.accepted += 1;
        self.live_bytes += asked.bytes;
        self.budget.accepted();
        self.lanes.push(waiting);
        self.entries.insert(id, entry);
        self.set_off(now, id, actions);
    }

    /// Sends a query that has just got into its lane, or what is before it, and says where it is.
    fn set_off(&mut self, now: u64, id: QueryId, actions: &mut Vec<Action>) {
        match self.settings.eager {
            true => {
                let waiting = self.entries[&id].waiting();
                self.send(now, &waiting, actions);
            }
            false => self.dispatch(now, actions),
        }
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.state == State::Waiting) {
            let place = self.lanes.number(&entry.waiting());
            actions.push(entry.stand(place).unwrap_or_else(|| entry.placed()));
        }
    }

    /// Fences: the entry if the sender holds its current attempt; else the sender is told to stop.
    fn current(&mut self, id: QueryId, attempt: Attempt, holder: &Holder, actions: &mut Vec<Action>) -> Option<&mut Entry> {
        if self.entries.get(&id).is_some_and(|entry| entry.is_superseded(attempt, holder)) {
            return None;
        }
        let known = self.entries.get_mut(&id);
        match known.filter(|entry| entry.attempt == attempt && entry.may_be_held_by(holder)) {
            Some(entry) => {
                actions.extend(entry.follow(holder));
                Some(entry)
            }
            None => {
                // A node that says more of it before it was told to go on has ended with it.
                self.orphans.forget(&id, attempt, holder);
                actions.push(Action::Cancel { stream: holder.stream, id, attempt });
                None
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the event's fields, taken apart")]
    fn generated(
        &mut self,
        now: u64,
        id: QueryId,
        attempt: Attempt,
        holder: Holder,
        position: u32,
        tokens: Vec<u32>,
        actions: &mut Vec<Action>,
    ) {
        self.streams.insert(holder.stream, now);
        let Some(entry) = self.current(id, attempt, &holder, actions) else { return };
        if entry.holder.is_none() || entry.state != State::Running {
            entry.hold(now, holder.clone(), true, Vec::new());
        }
        entry.seen_at = now;
        entry.started = true;
        let order = entry.order;
        let next = entry.tokens.len() as u32;
        if position == next {
            if entry.first_token_at.is_none() {
                entry.first_token_at = Some(now);
            }
            let more = tokens.len();
            entry.tokens.extend(tokens);
            let proven = entry.is_proven();
            self.live_bytes += TOKEN_BYTES * more;
            actions.push(Action::Deliver { id });
            if let Some(entry) = self.entries.get_mut(&id).filter(|_| proven) {
                entry.suspect = false;
                self.clear(id);
                self.dispatch(now, actions);
            }
        } else if position > next {
            // Something between was lost, which one stream can't do: this attempt can't be trusted any more.
            actions.push(Action::Cancel { stream: holder.stream, id, attempt });
            self.lose(now, id, Part::Bystander, actions);
            self.dispatch(now, actions);
            return;
        }
        // Else it was delivered twice, and once is enough.
        self.queued.remove(&(order, id));
        self.recalling.remove(&id);
    }

    /// Puts a query back into its lane; its next attempt follows when there is room.
    fn wait_again(&mut self, now: u64, id: QueryId, why: Why, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.tokens.last() == Some(&banyan_engine::PIECE) {
            actions.push(Action::Fail { id, failure: Failure::Broken });
            return self.end(now, id, Outcome::Lost, Some("a provider's answer broke off, which nobody can continue"));
        }
        entry.wait(now, why);
        actions.push(entry.placed());
        let (order, waiting, suspect, death) = (entry.order, entry.waiting(), entry.suspect, entry.death);
        if entry.impatient {
            self.impatient.push(id);
        }
        // Each may be sent again once, however many are lost with half a tree: that ends by itself. Who is refused waits for fresh
        // numbers anyway.
        let again = entry.attempt.number > 1;
        if suspect {
            self.suspects.insert((order, id));
        } else if again && why == Why::Lost && !self.budget.take(now) {
            self.paused.insert((order, id));
            actions.push(Action::Pause { id });
        } else {
            self.lanes.push(waiting);
        }
        self.take_in(death, id);
        self.queued.remove(&(order, id));
        self.recalling.remove(&id);
    }

    fn end(&mut self, now: u64, id: QueryId, outcome: Outcome, error: Option<&str>) {
        let Some(mut entry) = self.entries.remove(&id) else { return };
        self.live_bytes -= entry.bytes + TOKEN_BYTES * entry.tokens.len();
        self.measure(now, &entry, outcome);
        let place = (entry.order, id);
        let waits = [&mut self.suspects, &mut self.paused, &mut self.unclaimed].into_iter().any(|waiting| waiting.remove(&place));
        if entry.state == State::Waiting && !waits {
            self.lanes.remove(&entry.waiting());
        }
        self.take_in(entry.death, id);
        self.queued.remove(&place);
        self.recalling.remove(&id);
        entry.end(now, outcome, error);
        self.ways.push(entry.way());
    }

    /// Those that are so, in the order in which they were accepted: what is decided never depends on how a map lies.
    fn in_order(&self, so: impl Fn(&Entry) -> bool) -> Vec<QueryId> {
        let mut found: Vec<(u64, QueryId)> =
            self.entries.values().filter(|entry| so(entry)).map(|entry| (entry.order, entry.id)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn held_by(&self, stream: u64) -> Vec<QueryId> {
        self.in_order(|entry| entry.holder.as_ref().is_some_and(|holder| holder.stream == stream))
    }

    fn learn_models(&mut self) {
        for set in &self.room {
            for model in &set.models {
                if !self.known.contains(model) && self.known.len() < KNOWN_MODELS_MAX {
                    self.known.insert(model.clone());
                }
            }
        }
    }

    fn unknown_model(&self) -> Failure {
        let served: BTreeSet<Arc<str>> = self.room.iter().flat_map(|set| set.models.iter().cloned()).collect();
        Failure::UnknownModel { served: served.into_iter().take(SERVED_TOLD_MAX).collect() }
    }
}

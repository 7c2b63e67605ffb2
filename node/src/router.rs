//! The rule: which node runs a query, and which child gets it when this one can't.
//!
//! > The root never infers. A node that has room runs the query. A node that is busy passes it on, round-robin, to the
//! > next child whose subtree has room. A node with nobody to pass it to queues it. Whatever waits when the engine frees
//! > joins the running batch.
//!
//! Pure code: an [`Event`] goes in, [`Action`]s come out; no clock (time comes in with each event), no task, no wire. What the root owes to whom is the
//! ledger's; when capacity reports leave is the node task's.

mod child;
mod standing;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, VecDeque};

use banyan_proto::{Attempt, NodeName, QueryId};

use self::{child::Child, standing::Standing};
pub use self::{
    standing::Verdict,
    types::{Action, Because, Choice, Engine, Event, Service, Settings, Ticket},
};
use crate::{
    capacity::{self, Capacity, Sum, serves},
    config::Routing,
};

/// A trail longer than any legal tree is deep means that the links form a cycle.
const HOPS_MAX: u32 = 40;

/// More sequences than any subtree runs; keeps the sums of smooth weights far from overflow.
const WEIGHT_MAX: u64 = 1 << 32;

/// Children that failed and went away are remembered, so that a new link does not wash that away; no more of them than this.
const ABSENT_MAX: usize = 256;

/// Decides for one node. See the module.
#[derive(Debug)]
pub struct Router {
    settings: Settings,
    connected: bool,
    draining: bool,
    /// Sequences that the engine's keys allow together.
    slots_max: u32,
    running: BTreeMap<QueryId, Attempt>,
    queue: VecDeque<Ticket>,
    children: Vec<Child>,
    /// Those with a bad record that have no link now.
    absent: BTreeMap<NodeName, Standing>,
    /// Of what the children offer.
    sum: Sum,
    /// Where the next round begins.
    turn: usize,
    reported: Vec<Capacity>,
}

impl Router {
    /// A router with no children and an idle engine. A root is connected from the start.
    pub fn new(settings: Settings) -> Self {
        let connected = settings.engine.is_none();
        Router {
            settings,
            connected,
            draining: false,
            slots_max: u32::MAX,
            running: BTreeMap::new(),
            queue: VecDeque::new(),
            children: Vec::new(),
            absent: BTreeMap::new(),
            sum: Sum::default(),
            turn: 0,
            reported: Vec::new(),
        }
    }

    /// What this node was built from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Queries that the engine runs.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Queries that wait here.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The queries that wait here, the next one first.
    pub fn waiting(&self) -> impl Iterator<Item = &Ticket> {
        self.queue.iter()
    }

    /// Whether a query that came now would run here.
    pub fn has_room(&self) -> bool {
        self.own_room() > 0
    }

    /// A child's estimated room and the number of queries sent to it.
    pub fn child(&self, name: &NodeName) -> Option<(u32, u64)> {
        let child = self.children.iter().find(|child| child.name == *name)?;
        Some((u32::try_from(child.room("")).unwrap_or(u32::MAX), child.sent))
    }

    /// Whether the node is about to leave.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// In how many rounds a child gets one turn, and for how many microseconds it gets nothing.
    pub fn standing(&self, name: &NodeName, now: u64) -> (u32, u64) {
        let child = self.children.iter().find(|child| child.name == *name);
        child.map_or((1, 0), |child| (child.standing.one_in, child.standing.shut_us(now)))
    }

    /// What the subtree can take, this node included, per set of models that share an engine.
    pub fn capacity(&self) -> Vec<Capacity> {
        if self.draining {
            return Vec::new();
        }
        let own = self.settings.engine.as_ref().map(|engine| {
            // A node with children passes on what it can't run, and keeps no queue.
            let space = engine.queue_max.saturating_sub(self.queue.len() as u32);
            let queue = if self.children.is_empty() && self.connected { space } else { 0 };
            Capacity { models: engine.models.clone(), room: self.own_room(), queue, slots: engine.busy_at }
        });
        self.sum.with(own)
    }

    /// Decides what to do about one event at `now`, in microseconds since the node started.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Connected(connected) => self.connected = connected,
            Event::ChildJoined { child } => {
                self.remove_child(&child);
                let standing = self.absent.remove(&child).map_or_else(Standing::default, Standing::renewed);
                self.children.push(Child::new(child, standing));
            }
            Event::ChildLeft { child, orderly } => {
                if !orderly {
                    self.judge(&child, &mut actions, |child| {
                        let seed = child.seed();
                        child.has_work().then(|| child.standing.failed(now, 1, seed)).flatten()
                    });
                }
                self.remove_child(&child);
            }
            Event::ChildReported { child, received, capacity, service } => self.judge(&child, &mut actions, |child| {
                let seed = child.seed();
                child.report(now, received, capacity);
                child.standing.served(now, service, seed)
            }),
            Event::Draining => {
                self.draining = true;
                actions.extend(self.queue.drain(..).map(|ticket| Action::Return { id: ticket.id }));
            }
            Event::Tick => self.tick(now, &mut actions),
            Event::Arrived(ticket) => {
                let action = self.give_way(&ticket, &mut actions).unwrap_or_else(|| self.route(now, ticket));
                actions.push(action);
            }
            Event::Limited { slots } => {
                self.slots_max = slots;
                self.start_waiting(&mut actions);
            }
            Event::Ended { id } => {
                if self.running.remove(&id).is_some() {
                    self.start_waiting(&mut actions);
                }
            }
            Event::Cancelled { id, attempt } => {
                if self.running.get(&id).is_some_and(|running| *running <= attempt) {
                    // The slot stays taken until the engine says that the sequence ended.
                    actions.push(Action::Abort { id });
                } else if self.take_queued(id, |queued| queued <= attempt) {
                    actions.push(Action::Drop { id });
                }
            }
            Event::Recalled { id, attempt } => {
                if self.take_queued(id, |queued| queued == attempt) {
                    actions.push(Action::Return { id });
                }
            }
        }
        self.report(&mut actions);
        actions
    }

    /// An older attempt at the same query gives way to the new one. While the engine still has it the new one can't
    /// stay here: results are told apart by query.
    fn give_way(&mut self, ticket: &Ticket, actions: &mut Vec<Action>) -> Option<Action> {
        let id = ticket.id;
        if let Some(running) = self.running.get(&id) {
            if *running < ticket.attempt {
                actions.push(Action::Abort { id });
            }
            return Some(Action::Refuse { id, because: Because::Held });
        }
        if self.queue.iter().any(|queued| queued.id == id && queued.attempt >= ticket.attempt) {
            return Some(Action::Refuse { id, because: Because::Held });
        }
        if self.take_queued(id, |queued| queued < ticket.attempt) {
            actions.push(Action::Drop { id });
        }
        None
    }

    fn route(&mut self, now: u64, ticket: Ticket) -> Action {
        let id = ticket.id;
        if self.draining {
            return Action::Refuse { id, because: Because::Leaving };
        }
        if ticket.hops >= HOPS_MAX {
            return Action::Refuse { id, because: Because::Hops };
        }
        let ours = self.settings.engine.as_ref().is_some_and(|engine| serves(&engine.models, &ticket.model));
        let preferred_elsewhere = ticket.prefer.as_ref().filter(|name| **name != self.settings.name);
        if let Some(child) = preferred_elsewhere.and_then(|name| self.preferred(name, &ticket)) {
            return self.forward(now, child, ticket, Choice::Preferred);
        }
        if ours && self.own_room() > 0 {
            self.running.insert(id, ticket.attempt);
            return Action::Execute { id };
        }
        if let Some((child, choice)) = self.choose(&ticket) {
            return self.forward(now, child, ticket, choice);
        }
        let Some(engine) = self.settings.engine.as_ref().filter(|_| ours) else {
            return Action::Refuse { id, because: Because::Model };
        };
        if !self.connected {
            return Action::Refuse { id, because: Because::Disconnected };
        }
        if self.queue.len() >= engine.queue_max as usize {
            return Action::Refuse { id, because: Because::Busy };
        }
        self.queue.push_back(ticket);
        Action::Queue { id }
    }

    fn forward(&mut self, now: u64, index: usize, ticket: Ticket, choice: Choice) -> Action {
        let child = &mut self.children[index];
        self.sum.subtract(&child.offered);
        child.send(now, ticket.model);
        self.sum.add(&child.offered);
        // The turn advances even when the send should fail: a dead child then costs one query a lap.
        self.turn = index + 1;
        Action::Forward { id: ticket.id, child: child.name.clone(), choice }
    }

    fn preferred(&self, name: &NodeName, ticket: &Ticket) -> Option<usize> {
        self.children
            .iter()
            .position(|child| child.name == *name && ticket.avoid.as_ref() != Some(name) && child.room(&ticket.model) > 0)
    }

    /// The child that gets a query which this node can't run.
    fn choose(&mut self, ticket: &Ticket) -> Option<(usize, Choice)> {
        let model = &*ticket.model;
        let count = self.children.len();
        let mut order: Vec<usize> = (0..count).map(|step| (self.turn + step) % count).collect();
        if let Some(avoided) = &ticket.avoid
            && self.children.iter().any(|child| child.name != *avoided && child.serves(model))
        {
            order.retain(|&index| self.children[index].name != *avoided);
        }
        let with_room = || order.iter().copied().filter(|&index| self.children[index].room(model) > 0);
        let chosen = match self.settings.routing {
            Routing::Classic => None,
            Routing::RoundRobin => {
                let open: Vec<usize> = with_room().collect();
                self.next_turn(&open)
            }
            Routing::LeastBusy => with_room().reduce(|best, next| {
                let (best_child, next_child) = (&self.children[best], &self.children[next]);
                // Compares room / (slots · one_in) without dividing.
                let size = |child: &Child| u128::from(child.slots(model)) * u128::from(child.standing.one_in);
                let left = u128::from(next_child.room(model)) * size(best_child);
                let right = u128::from(best_child.room(model)) * size(next_child);
                if left > right { next } else { best }
            }),
            Routing::Weighted => {
                let open: Vec<usize> = with_room().collect();
                self.weighted(&open, model)
            }
        };
        if let Some(index) = chosen {
            return Some((index, Choice::Room));
        }
        // A queue with space before one without, and any child that serves the model before nobody, so that nothing
        // depends on fresh numbers.
        let classic = self.settings.routing == Routing::Classic;
        let usable = |index: &usize| self.children[*index].serves(model) && !self.children[*index].is_shut();
        let any_usable = order.iter().any(usable);
        let serving =
            || order.iter().copied().filter(|index| if any_usable { usable(index) } else { self.children[*index].serves(model) });
        let queueing = serving().find(|&index| !classic && self.children[index].queue(model) > 0);
        queueing.or_else(|| serving().next()).map(|index| (index, Choice::Turn))
    }

    /// Round-robin, in which slow children let some of their turns go by.
    fn next_turn(&mut self, open: &[usize]) -> Option<usize> {
        let quickest = open.iter().map(|&index| self.children[index].standing.one_in).min()?;
        open.iter().copied().find(|&index| {
            let standing = &mut self.children[index].standing;
            standing.passed += 1;
            let its_turn = standing.passed >= standing.one_in / quickest;
            if its_turn {
                standing.passed = 0;
            }
            its_turn
        })
    }

    /// Smooth weighted round-robin (as in nginx): everyone gains its weight, the richest is picked and pays the sum.
    fn weighted(&mut self, open: &[usize], model: &str) -> Option<usize> {
        let mut sum = 0;
        for &index in open {
            let weight = self.children[index].slots(model).clamp(1, WEIGHT_MAX) as i64;
            let weight = (weight / i64::from(self.children[index].standing.one_in)).max(1);
            self.children[index].credit += weight;
            sum += weight;
        }
        let richest = open.iter().copied().max_by_key(|&index| (self.children[index].credit, std::cmp::Reverse(index)))?;
        self.children[richest].credit -= sum;
        Some(richest)
    }

    fn own_room(&self) -> u32 {
        match &self.settings.engine {
            Some(engine) if self.connected && !self.draining && self.queue.is_empty() => {
                engine.busy_at.min(self.slots_max).saturating_sub(self.running.len() as u32)
            }
            _ => 0,
        }
    }

    fn start_waiting(&mut self, actions: &mut Vec<Action>) {
        let batch_max = self.settings.engine.as_ref().map_or(0, |engine| engine.batch_max.min(self.slots_max)) as usize;
        while self.running.len() < batch_max
            && let Some(ticket) = self.queue.pop_front()
        {
            self.running.insert(ticket.id, ticket.attempt);
            actions.push(Action::Execute { id: ticket.id });
        }
    }

    fn take_queued(&mut self, id: QueryId, matches: impl Fn(Attempt) -> bool) -> bool {
        let found = self.queue.iter().position(|ticket| ticket.id == id && matches(ticket.attempt));
        found.and_then(|index| self.queue.remove(index)).is_some()
    }

    fn remove_child(&mut self, name: &NodeName) {
        if let Some(index) = self.children.iter().position(|child| child.name == *name) {
            let child = self.children.remove(index);
            self.sum.subtract(&child.offered);
            if child.standing.is_bad() {
                self.absent.insert(child.name, child.standing);
                if self.absent.len() > ABSENT_MAX {
                    self.absent.pop_first();
                }
            }
            // The others keep their turns.
            if index < self.turn {
                self.turn -= 1;
            }
        }
    }

    /// Changes what is known of a child, and notes what follows from it.
    fn judge(&mut self, name: &NodeName, actions: &mut Vec<Action>, change: impl FnOnce(&mut Child) -> Option<Verdict>) {
        let Some(child) = self.children.iter_mut().find(|known| known.name == *name) else { return };
        self.sum.subtract(&child.offered);
        let verdict = change(child);
        child.offer();
        self.sum.add(&child.offered);
        actions.extend(verdict.map(|verdict| Action::Judge { child: name.clone(), verdict }));
    }

    fn tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        let best_delay_us = self.children.iter().map(|child| child.standing.delay_us(child.oldest_us(now))).min().unwrap_or(0);
        let best_pace_us = self.children.iter().filter_map(|child| child.standing.pace_us(now)).min().unwrap_or(0);
        for child in &mut self.children {
            let oldest_us = child.oldest_us(now);
            let compared = child.standing.compare(now, oldest_us, best_delay_us, best_pace_us);
            let trial = child.standing.tick(now);
            if trial.is_some() {
                self.sum.subtract(&child.offered);
                child.offer();
                self.sum.add(&child.offered);
            }
            actions.extend(compared.into_iter().chain(trial).map(|verdict| Action::Judge { child: child.name.clone(), verdict }));
        }
    }

    fn report(&mut self, actions: &mut Vec<Action>) {
        let capacity = self.capacity();
        if capacity == self.reported {
            return;
        }
        let urgent = capacity::opened_or_closed(&self.reported, &capacity);
        self.reported.clone_from(&capacity);
        actions.push(Action::Report { capacity, urgent });
    }
}

//! What the ledger sends next, and what it takes back from queues to send it elsewhere.

use std::sync::Arc;

use banyan_proto::QueryId;

use super::{Action, Ledger, entry::Entry};
use crate::{
    capacity::{self, Capacity},
    lanes::Waiting,
    router::Ticket,
};

impl Ledger {
    /// Sends what waits while there is room, the oldest first: a query that waits in a node's queue is older than those
    /// behind it in the lanes, so it is recalled before they take the room.
    pub(super) fn dispatch(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.settings.eager || self.waiting() == 0 && self.queued.len() == self.recalling.len() {
            return;
        }
        if self.room.iter().all(|set| set.room == 0 && set.queue == 0) {
            return;
        }
        let mut free = self.room.clone();
        for id in &self.recalling {
            capacity::take(&mut free, &self.entries[id].model);
        }
        // What is recalled goes to the room that is kept for it; sent into a queue meanwhile, a younger one would get there.
        let mut reserved: Vec<Arc<str>> = self.recalling.iter().map(|id| self.entries[id].model.clone()).collect();
        let has_place = |free: &[Capacity], model: &str| capacity::total(free, model, |set| set.room | set.queue) > 0;
        while let Some(suspect) = self.next_suspect(|model| has_place(&free, model)) {
            capacity::take(&mut free, &suspect.model);
            self.send(now, &suspect, actions);
        }
        loop {
            let open = |model: &str| {
                let shares = |other: &Arc<str>| **other == *model || model.is_empty() || other.is_empty();
                let queues = !reserved.iter().any(shares);
                capacity::total(&free, model, |set| if queues { set.room | set.queue } else { set.room }) > 0
            };
            let next = self.lanes.peek(open).cloned();
            let oldest = self.oldest_to_recall(&free).filter(|(order, _)| next.as_ref().is_none_or(|next| *order < next.order));
            if let Some((_, id)) = oldest {
                let entry = self.entries.get_mut(&id).expect("a queued query is live");
                capacity::take(&mut free, &entry.model);
                reserved.push(entry.model.clone());
                entry.recalled = true;
                self.recalling.insert(id);
                let holder = entry.holder.as_ref().expect("a queued query has a holder");
                actions.push(Action::Recall { stream: holder.stream, id, attempt: entry.attempt });
            } else if let Some(next) = next {
                capacity::take(&mut free, &next.model);
                self.send(now, &next, actions);
            } else {
                return;
            }
        }
    }

    /// The oldest suspect whose model is open, and of whose death no other is under way.
    fn next_suspect(&self, open: impl Fn(&str) -> bool) -> Option<Waiting> {
        let mut waiting = self.suspects.iter().map(|(_, id)| &self.entries[id]);
        waiting.find(|entry| !self.out.contains_key(&entry.death) && open(&entry.model)).map(Entry::waiting)
    }

    fn oldest_to_recall(&self, free: &[Capacity]) -> Option<(u64, QueryId)> {
        if free.iter().all(|set| set.room == 0) {
            return None;
        }
        let open = |id: &QueryId| capacity::total(free, &self.entries[id].model, |set| set.room) > 0;
        self.queued.iter().find(|(_, id)| !self.recalling.contains(id) && open(id)).copied()
    }

    /// Classic routing: whatever was refused or lost goes out again, oldest owner first, without a look at any room.
    pub(super) fn retry(&mut self, now: u64, most: usize, actions: &mut Vec<Action>) {
        while let Some(suspect) = self.next_suspect(|_| true) {
            self.send(now, &suspect, actions);
        }
        for _ in 0..most {
            let Some(next) = self.lanes.peek(|_| true).cloned() else { return };
            self.send(now, &next, actions);
        }
    }

    pub(super) fn send(&mut self, now: u64, waiting: &Waiting, actions: &mut Vec<Action>) {
        let entry = self.entries.get_mut(&waiting.id).expect("a waiting query is live");
        if self.suspects.remove(&(entry.order, entry.id)) {
            self.out.insert(entry.death, entry.id);
        } else {
            self.lanes.serve(waiting);
        }
        capacity::take(&mut self.room, &waiting.model);
        let why = entry.why;
        entry.send(now, self.settings.epoch);
        let ticket = Ticket {
            id: entry.id,
            attempt: entry.attempt,
            model: entry.model.clone(),
            prefer: entry.prefer.clone(),
            hops: 0,
            // Which child had the last one is the node task's to say.
            avoid: None,
        };
        actions.push(Action::Send { ticket, why });
    }
}

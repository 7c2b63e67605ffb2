//! What the ledger tells of its accounts to whoever asks.

use std::sync::Arc;

use banyan_proto::{Attempt, NodeName, QueryId};

use super::{Hop, Ledger, Settings, State, Way, entry::Entry};

impl Ledger {
    /// Queries that are not ended.
    pub fn live(&self) -> usize {
        self.entries.len()
    }

    /// Whether a query is not ended.
    pub fn is_live(&self, id: &QueryId) -> bool {
        self.entries.contains_key(id)
    }

    /// Queries that wait at the root.
    pub fn waiting(&self) -> usize {
        self.lanes.len() + self.suspects.len() + self.paused.len() + self.unclaimed.len()
    }

    /// How many wait in lanes for each model that somebody waits for; the empty name is for any.
    pub fn waiting_by_model(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.lanes.by_model()
    }

    /// Queries that nodes hold since an earlier reign, and nobody has asked for yet.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// Whether a node holds it since an earlier reign, and nobody has asked for it yet.
    pub fn is_orphan(&self, id: &QueryId) -> bool {
        self.orphans.contains(id)
    }

    /// The root's reign.
    pub fn epoch(&self) -> u64 {
        self.settings.epoch
    }

    /// The tokens that a query's client has, and what is left of its time at `now` in microseconds: what a new attempt takes
    /// along.
    pub fn delivered(&self, id: &QueryId, now: u64) -> Option<(&[u32], u64)> {
        let entry = self.entries.get(id)?;
        Some((&entry.tokens, entry.deadline.saturating_sub(now)))
    }

    /// Whether an engine died or failed with a query that has not got past that point since.
    pub fn is_suspect(&self, id: &QueryId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.suspect)
    }

    /// The current attempt at a live query.
    pub fn attempt(&self, id: &QueryId) -> Option<Attempt> {
        self.entries.get(id).map(|entry| entry.attempt)
    }

    /// The model that a live query asks for.
    pub fn model(&self, id: &QueryId) -> Option<&str> {
        self.entries.get(id).map(|entry| &*entry.model)
    }

    /// The nodes that the current attempt came through, as its holder said.
    pub fn trail(&self, id: &QueryId) -> &[Hop] {
        self.entries.get(id).map_or(&[], Entry::trail)
    }

    /// How long a query lay at the root before its current attempt was sent at `now`, in microseconds.
    pub fn waited(&self, id: &QueryId, now: u64) -> Option<u64> {
        self.entries.get(id).map(|entry| now.saturating_sub(entry.waiting_since))
    }

    /// Where each live query is, and who holds it.
    pub fn places(&self) -> impl Iterator<Item = (QueryId, State, Option<&NodeName>)> {
        self.entries.values().map(|entry| (entry.id, entry.state, entry.holder.as_ref().map(|holder| &holder.name)))
    }

    /// What this ledger was built from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The way of a live or recently ended query.
    pub fn way(&self, id: &QueryId) -> Option<Way> {
        self.entries.get(id).map(Entry::way).or_else(|| self.ways.get(id).cloned())
    }

    /// The way of a query that ended lately.
    pub fn ended(&self, id: &QueryId) -> Option<&Way> {
        if self.entries.contains_key(id) { None } else { self.ways.get(id) }
    }

    /// Whether a node has served a model in this reign.
    pub fn has_served(&self, model: &str) -> bool {
        self.known.contains(model)
    }

    /// The queries, live and recently ended, whose id begins so.
    pub fn ids_with_prefix(&self, prefix: &str) -> Vec<QueryId> {
        let live = self.entries.keys().copied();
        let matching = live.chain(self.ways.ids()).filter(|id| id.to_string().starts_with(prefix));
        // Two are as ambiguous as many; one that was asked twice is one.
        let mut found: Vec<QueryId> = Vec::new();
        for id in matching {
            if !found.contains(&id) {
                found.push(id);
            }
            if found.len() == 2 {
                break;
            }
        }
        found
    }
}
